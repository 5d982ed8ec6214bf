"""On-policy distillation in a loop of one's own: python examples/on_policy.py --teacher NAME

By default the student is taught the reverse KL over the whole vocabulary. `--opd` is Tinker's way, one
sampled token at a time. Kill it and start it again: it goes on where it was.
"""

import argparse

import tinsmith as tinker
from tinsmith.distill import GKD, OPD, Distiller

PROMPTS = [f"What is {first} plus {second}? Answer:" for first in range(8) for second in range(4)]

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--student", default="HuggingFaceTB/SmolLM2-135M-Instruct")
parser.add_argument("--teacher", required=True, help="a base model, or tinker://...")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--max-tokens", type=int, default=24)
parser.add_argument("--opd", action="store_true")
parser.add_argument("--state", default="on_policy.json")
parser.add_argument("--plot", help="a picture of the curves")
options = parser.parse_args()

with tinker.ServiceClient() as service:
    run = service.create_lora_training_client(options.student, rank=16, seed=0).result()
    method = OPD(baseline=True, reduction="mean") if options.opd else GKD(beta=1.0)
    distiller = Distiller(
        run,
        options.teacher,
        method,
        max_tokens=options.max_tokens,
        group_size=2,
        learning_rate=1e-3,
    )
    print(f"Computed by {distiller.support}.")
    steps = distiller.run(
        PROMPTS,
        options.steps,
        batch_size=8,
        state=options.state,
        metrics="on_policy.jsonl",
        console=True,
    )
    print(distiller.evaluate(PROMPTS[:8]))
    distiller.close()

if options.plot:
    from tinsmith.distill import plots

    plots.draw({"run": plots.read("on_policy.jsonl")}, options.plot)
