"""GOLD, between tokenizers: python examples/gold.py --student NAME --teacher NAME --data rows.jsonl

Student and teacher are base models of the service; their tokenizers may differ. `tinsmith up` prints the two
variables that say where the service is. Rows have `messages`, or `prompt` and `completion`.
"""

import argparse

from datasets import load_dataset
from tinsmith.trl import GOLDConfig, GOLDTrainer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--student", default="meta-llama/Llama-3.2-1B")
parser.add_argument("--teacher", default="Qwen/Qwen2.5-7B-Instruct")
parser.add_argument("--data", required=True, help="a JSONL file")
parser.add_argument("--out", default="./gold_output")
parser.add_argument("--steps", type=int, default=-1)
parser.add_argument("--max-new-tokens", type=int, default=128)
options = parser.parse_args()

config = GOLDConfig(
    output_dir=options.out,
    num_train_epochs=3,
    max_steps=options.steps,
    per_device_train_batch_size=4,
    learning_rate=5e-5,
    max_completion_length=options.max_new_tokens,
    logging_steps=1,
)
trainer = GOLDTrainer(
    model=options.student,
    teacher_model=options.teacher,
    args=config,
    train_dataset=load_dataset("json", data_files=options.data, split="train"),
)
trainer.train()
for row in trainer.state.log_history:
    print(f"step {row['step']}: {row}")
print(f"A PEFT folder: {options.out}")
trainer.close()
