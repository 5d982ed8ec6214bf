"""A teacher with another tokenizer: Gemma 3 270M teaches SmolLM2-135M.

    tinsmith models prepare smollm2-135m
    tinsmith models prepare gemma3-270m --accept-license   # Gemma Terms of Use
    python examples/cross_tokenizer.py

What is compared is text: the stretches where tokens of both models end together. By `chunk` the teacher
scores what was sampled, an estimate that is noisy from step to step; `gold` compares whole distributions.
"""

import argparse

import tinsmith as tinker
from tinsmith.distill import GOLD, Distiller

PROMPTS = [
    "The capital of France is",
    "Water boils at",
    "The largest planet is",
    "Plants grow towards",
    "The opposite of hot is",
    "A week has seven",
    "The sun rises in the",
    "Bread is made from",
]

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--student", default="HuggingFaceTB/SmolLM2-135M-Instruct")
parser.add_argument("--teacher", default="google/gemma-3-270m")
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--mode", choices=("chunk", "gold", "uld"), default="chunk")
options = parser.parse_args()

with tinker.ServiceClient() as service:
    run = service.create_lora_training_client(options.student, rank=16, seed=0).result()
    method = GOLD(mode=options.mode)
    with Distiller(run, options.teacher, method, max_tokens=12, learning_rate=5e-4) as distiller:
        print(f"Computed by {distiller.support}.")
        for step in distiller.run(PROMPTS, options.steps, batch_size=8):
            told = [(name, step.metrics.get(name)) for name in ("sampled_kl", "divergence", "loss")]
            shown = ", ".join(f"{name} {value:.3f}" for name, value in told if value is not None)
            print(f"step {step.number}: {shown}")
