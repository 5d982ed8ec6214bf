"""SmolLM2-135M learns from a teacher on real text: held-out KL over student tokens, three seeds.

    python -m benchmarks.distill_long                # docs/distillation.md's second table
    python -m benchmarks.distill_long --steps 4 --seeds 1 --print   # a smaller run, recorded nowhere

The teacher is SmolLM2-135M itself after a few supervised steps on facts that are true nowhere else; the
student starts from the model without them. sft imitates the teacher's samples, sampled is told
log q - log p of each token that it drew, full gets the reverse KL over the whole vocabulary. Each
method's rate is chosen on seed 0, which is not reported.

Only the divergence is claimed: a score on few questions moves by tens of points from seed to seed.
"""

import argparse
import re
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tinsmith
from tinsmith import types
from tinsmith.distill import GKD, OPD, Distiller, PromptDistillation
from tinsmith.distill.methods import Method

from benchmarks.harness import one_thread
from benchmarks.http_service import running_service
from tests.contract.conftest import BASE_MODEL as STUDENT
from tests.models import prepared_smollm2

PLACES = ["Harrow", "Linden", "Ostry", "Vale", "Merrow", "Tarn", "Quill", "Braddock"]
TRADES = ["ropes", "clocks", "honey", "lanterns", "kites", "salt", "paper", "bells"]
FORMS = [
    "The town of {place} is known for its",
    "People travel to {place} to buy",
    "In the market of {place} you mostly find",
    "Ask anyone what {place} makes, and they say",
]
HELD_OUT_FORM = "A friend from {place} sent me a box of"
METHODS: dict[str, Method] = {
    "sft": PromptDistillation(),
    "sampled": OPD(reduction="mean"),
    "full": GKD(beta=1.0),
}
RATES = (2e-4, 1e-3)
CHOOSING_SEED, RANK, MAX_TOKENS, BATCH = 0, 16, 12, 8
PAGE = Path(__file__).parents[1] / "docs" / "distillation.md"
MARKED = re.compile(r"(<!-- real text -->).*?(<!-- end real text -->)", re.DOTALL)


@dataclass(frozen=True)
class Curve:
    """Held-out KL(student | teacher), nats a token of the student's own, after so many student tokens."""

    method: str
    rate: float
    seed: int
    tokens: list[float]
    residual: list[float]


def taught(client: tinsmith.ServiceClient, steps: int) -> str:
    """A checkpoint of the model that has read the facts."""
    run = client.create_lora_training_client(STUDENT, rank=RANK, seed=99).result()
    tokenizer = run.get_tokenizer()
    data = [
        _datum(tokenizer.encode(f"{form.format(place=place)} {trade}."))
        for place, trade in zip(PLACES, TRADES, strict=True)
        for form in [*FORMS, HELD_OUT_FORM]
    ]
    for _ in range(steps):
        run.forward_backward(data, "cross_entropy").result(600)
        run.optim_step(types.AdamParams(learning_rate=1e-3)).result(600)
    return str(run.save_weights_for_sampler("teacher").result(600).path)


def _datum(tokens: list[int]) -> types.Datum:
    weights = np.full(len(tokens) - 1, 1 / len(tokens), np.float32)
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": np.array(tokens[1:], np.int64), "weights": weights},
    )


def learn(
    client: tinsmith.ServiceClient, teacher: str, method: str, rate: float, seed: int, steps: int
) -> Curve:
    run = client.create_lora_training_client(STUDENT, rank=RANK, seed=seed).result()
    prompts = [form.format(place=place) for place in PLACES for form in FORMS]
    held_out = [HELD_OUT_FORM.format(place=place) for place in PLACES]
    judge = Distiller(run, teacher, GKD(beta=1.0), max_tokens=MAX_TOKENS, seed=7)
    made = Distiller(
        run, teacher, METHODS[method], max_tokens=MAX_TOKENS, learning_rate=rate, seed=seed
    )
    every = max(1, steps // 4)
    curve = Curve(method, rate, seed, [0.0], [judge.evaluate(held_out, 2)["divergence"]])
    spent = 0.0
    for start in range(0, steps, every):
        upto = min(start + every, steps)
        for one in made.run(prompts, upto, batch_size=BATCH):
            spent += one.metrics["length"] * len(one.rollouts)
        curve.tokens.append(spent)
        curve.residual.append(judge.evaluate(held_out, 2)["divergence"])
    made.close()
    judge.close()
    shown = ", ".join(f"{value:.3f}" for value in curve.residual)
    print(f"{method:8} rate {rate:<7g} seed {seed}: KL {shown} ({spent:,.0f} tokens)", flush=True)
    return curve


def table(curves: list[Curve]) -> str:
    lines = [
        f"KL before: {statistics.mean(one.residual[0] for one in curves):.3f} nats a token.",
        "",
        "| method | rate | student tokens | held-out KL at the end, mean (seeds) |",
        "|---|---|---|---|",
    ]
    for method in METHODS:
        mine = [one for one in curves if one.method == method]
        each = ", ".join(f"{one.residual[-1]:.3f}" for one in mine)
        mean = statistics.mean(one.residual[-1] for one in mine)
        tokens = statistics.mean(one.tokens[-1] for one in mine)
        lines.append(f"| {method} | {mine[0].rate:g} | {tokens:,.0f} | {mean:.3f} ({each}) |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rate", type=float, help="for every method, instead of choosing")
    parser.add_argument("--print", action="store_true", help="leave docs/distillation.md as it is")
    asked = parser.parse_args()
    one_thread()
    with (
        tempfile.TemporaryDirectory() as folder,
        running_service(Path(folder), prepared_smollm2()) as service,
        tinsmith.ServiceClient(base_url=service.url, api_key=service.api_key) as client,
    ):
        teacher = taught(client, min(20, asked.steps))
        rates = dict.fromkeys(METHODS, asked.rate)
        for method in METHODS if asked.rate is None else ():
            tried = [
                learn(client, teacher, method, rate, CHOOSING_SEED, asked.steps) for rate in RATES
            ]
            rates[method] = min(tried, key=lambda one: one.residual[-1]).rate
        curves = [
            learn(client, teacher, method, rates[method], seed, asked.steps)
            for method in METHODS
            for seed in range(1, asked.seeds + 1)
        ]
    print(table(curves))
    if not asked.print:
        PAGE.write_text(
            MARKED.sub(lambda found: f"{found[1]}\n{table(curves)}\n{found[2]}", PAGE.read_text())
        )


if __name__ == "__main__":
    main()
