"""MiniLLM, the guide's third snippet: python examples/minillm.py --student NAME --teacher NAME --data rows.jsonl

Student and teacher are base models of the service, with one tokenizer. `tinsmith up` prints the two
variables that say where the service is. Rows have `messages`, or `prompt` and `completion`.
"""

import argparse

from datasets import load_dataset
from tinsmith.trl import MiniLLMConfig, MiniLLMTrainer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--student", default="meta-llama/Llama-3.2-1B")
parser.add_argument("--teacher", default="meta-llama/Llama-3.2-3B-Instruct")
parser.add_argument("--data", required=True, help="a JSONL file")
parser.add_argument("--out", default="./minillm_output")
parser.add_argument("--steps", type=int, default=-1)
parser.add_argument("--max-new-tokens", type=int, default=128)
options = parser.parse_args()

config = MiniLLMConfig(
    output_dir=options.out,
    num_train_epochs=3,
    max_steps=options.steps,
    per_device_train_batch_size=4,
    learning_rate=1e-4,
    num_generations=2,
    use_distribution_distillation=True,
    max_completion_length=options.max_new_tokens,
    logging_steps=1,
)
trainer = MiniLLMTrainer(
    model=options.student,
    teacher_model=options.teacher,
    args=config,
    train_dataset=load_dataset("json", data_files=options.data, split="train"),
)
trainer.train()
for row in trainer.state.log_history:
    print(f"step {row['step']}: divergence {row['divergence']:.4f} nats a token")
print(f"A PEFT folder: {options.out}")
trainer.close()
