"""SmolLM2-135M learns from a teacher on real text: held-out KL over student tokens, three seeds.

    python -m benchmarks.distill_long                # docs/distillation.md's second part; goes on where it stopped
    python -m benchmarks.distill_long --steps 4 --seeds 1 --print   # a smaller run, recorded nowhere

The teacher is SmolLM2-135M itself after a few supervised steps on facts that are true nowhere else; the
student starts from the model without them. sft imitates the teacher's samples, sampled is told
log q - log p of each token that it drew, full gets the reverse KL over the whole vocabulary. Each
method's rate is chosen from one grid on seed 0, which is not reported.

Only the divergence is claimed: a score on few questions moves by tens of points from seed to seed.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tinsmith
from tinsmith import types
from tinsmith.distill import GKD, OPD, Distiller, PromptDistillation
from tinsmith.distill.methods import Method

from benchmarks import distill_page as page
from benchmarks.harness import RESULTS, one_thread
from benchmarks.http_service import running_service
from benchmarks.kept import Kept
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
TEACHER_STEPS, POINTS, EACH = 20, 5, 2
RESULT = RESULTS / "distill_long.json"


@dataclass(frozen=True)
class Curve:
    """Held-out KL(student, teacher), nats a token of the student's own, after so many student tokens."""

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


@dataclass(frozen=True)
class Lesson:
    """What every run has in common."""

    client: tinsmith.ServiceClient
    teacher: str
    steps: int
    kept: Kept

    def curve(self, method: str, rate: float, seed: int) -> Curve:
        piece = self.kept.piece(
            f"{method} {rate:g} {seed}", lambda: asdict(self.learn(method, rate, seed))
        )
        curve = Curve(**piece)
        shown = ", ".join(f"{value:.3f}" for value in curve.residual)
        print(
            f"{self.kept.seconds:5.0f} s  {method:8} rate {rate:<7g} seed {seed}: KL {shown}",
            flush=True,
        )
        return curve

    def learn(self, method: str, rate: float, seed: int) -> Curve:
        run = self.client.create_lora_training_client(STUDENT, rank=RANK, seed=seed).result()
        prompts = [form.format(place=place) for place in PLACES for form in FORMS]
        held_out = [HELD_OUT_FORM.format(place=place) for place in PLACES]
        judge = Distiller(run, self.teacher, GKD(beta=1.0), max_tokens=MAX_TOKENS, seed=7)
        made = Distiller(
            run, self.teacher, METHODS[method], max_tokens=MAX_TOKENS, learning_rate=rate, seed=seed
        )
        every = max(1, self.steps // POINTS)
        tokens, residual = [0.0], [judge.evaluate(held_out, EACH)["divergence"]]
        for start in range(0, self.steps, every):
            some = min(start + every, self.steps)
            spent = sum(
                one.metrics["length"] * len(one.rollouts)
                for one in made.run(prompts, some, batch_size=BATCH)
            )
            tokens.append(tokens[-1] + spent)
            residual.append(judge.evaluate(held_out, EACH)["divergence"])
        made.close()
        judge.close()
        return Curve(method, rate, seed, tokens, residual)

    def best_rate(self, method: str) -> float:
        tried = [self.curve(method, rate, CHOOSING_SEED) for rate in RATES]
        return min(tried, key=lambda one: one.residual[-1]).rate


def told(curves: Sequence[Curve], steps: int, seconds: float) -> str:
    cells = []
    for method in METHODS:
        mine = [one for one in curves if one.method == method]
        tokens = statistics.mean(one.tokens[-1] for one in mine)
        ends = [one.residual[-1] for one in mine]
        cells.append([method, f"{mine[0].rate:g}", f"{tokens:,.0f}", page.told(ends, 3)])
    before = statistics.mean(one.residual[0] for one in curves)
    return "\n".join(
        [
            f"`make bench-distill-long STEPS={steps}`: {steps} steps of {BATCH} sentences, "
            f"{seconds / 60:.0f} minutes. KL before: {before:.3f} nats a token.",
            "",
            page.table(["method", "rate", "student tokens", "held-out KL, mean (seeds)"], cells),
            "",
            *verdicts(curves),
            "",
            page.picture(
                "distill-long", "held-out KL to the teacher over student tokens, by method"
            ),
        ]
    )


def verdicts(curves: Sequence[Curve]) -> list[str]:
    """A difference is one only where every pair of seeds agrees on it."""
    ends = {name: [one.residual[-1] for one in curves if one.method == name] for name in METHODS}
    lines = []
    for other in METHODS.keys() - {"full"}:
        gap = statistics.mean(ends["full"]) - statistics.mean(ends[other])
        agree = page.apart(ends["full"], ends[other])
        seeds = "every seed agrees" if agree else "the seeds do not separate them"
        lines.append(f"- full - {other}: {gap:+.3f} nats a token; {seeds}.")
    return sorted(lines)


def lines(curves: Sequence[Curve]) -> list[page.Line]:
    """Answers differ in length, so a point stands at its seeds' mean of tokens."""
    made = []
    for method in METHODS:
        mine = [one for one in curves if one.method == method]
        tokens = [statistics.mean(some) for some in zip(*(one.tokens for one in mine), strict=True)]
        points = list(zip(*(one.residual for one in mine), strict=True))
        made.append(page.Line(method, tokens, points))
    return made


def write_page() -> None:
    found = json.loads(RESULT.read_text())
    curves = [Curve(**one) for one in found["curves"]]
    page.fill("real text", told(curves, found["steps"], found["seconds"]))
    page.draw(lines(curves), "held-out KL(student, teacher), nats a token", "distill-long")


def measured(kept: Kept, asked: argparse.Namespace) -> list[Curve]:
    with (
        tempfile.TemporaryDirectory() as folder,
        running_service(Path(folder), prepared_smollm2(), pinned=False) as service,
        tinsmith.ServiceClient(base_url=service.url, api_key=service.api_key) as client,
    ):
        lesson = Lesson(client, taught(client, TEACHER_STEPS), asked.steps, kept)
        rates = {one: asked.rate or lesson.best_rate(one) for one in METHODS}
        return [
            lesson.curve(method, rates[method], seed)
            for seed in range(1, asked.seeds + 1)
            for method in METHODS
        ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rate", type=float, help="for every method, instead of choosing")
    parser.add_argument("--print", action="store_true", help="record nothing")
    asked = parser.parse_args()
    one_thread()
    kept = Kept("distill-long", {**vars(asked), "rates": RATES, "batch": [BATCH, MAX_TOKENS, EACH]})
    curves = measured(kept, asked)
    if asked.print:
        print(told(curves, asked.steps, kept.seconds))
    else:
        result = {
            "steps": asked.steps,
            "seconds": kept.seconds,
            "curves": [asdict(one) for one in curves],
        }
        RESULT.write_text(json.dumps(result) + "\n")
        write_page()
    kept.forget()


if __name__ == "__main__":
    main()
