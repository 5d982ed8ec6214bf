"""Four ways to learn from a teacher, through the service, at equal student tokens.

    python -m benchmarks.distill             # writes docs/distillation.md's table and docs/distill.png
    python -m benchmarks.distill --quick     # a few steps of everything, recorded nowhere

sft:     the teacher answers, the student imitates (cross_entropy).
sampled: the student answers; each token's advantage is log q - log p (importance_sampling): reverse KL
         as a client sees it that is told one number a token.
full:    the student answers; reverse KL over the whole vocabulary (x_distill_jsd, beta 1).
jsd:     the same with the Jensen-Shannon divergence (beta 0.5).

Learning rates are chosen per method on known questions with seed 0, which is not reported; seeds 1 to 3
are. What is scored are questions that no student was trained on; the figure for known questions stands
beside it.
"""

import argparse
import json
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
import tinsmith
from matplotlib import pyplot
from tinsmith import types

from benchmarks.harness import RESULTS, Row, finish, one_thread
from benchmarks.http_service import running_service
from benchmarks.routes import HOPS, Question, Routes, make_bases, prompt, share_valid
from tests.contract.conftest import BASE_MODEL as STUDENT

matplotlib.use("Agg")
TEACHER = "bench/teacher"
STEPS, CHOOSING_STEPS, PROMPTS, EACH, EVERY = 160, 60, 32, 4, 40
TOKENS_A_STEP = PROMPTS * EACH * HOPS
RATES = {
    "sft": (2e-3, 5e-3, 1e-2),
    "sampled": (1e-3, 2e-3, 4e-3),
    "full": (2e-3, 5e-3, 1e-2),
    "jsd": (2e-3, 5e-3, 1e-2),
}
FLOORS = {"sft": 8.0, "sampled": 25.0}
"""Points of valid answers by which the full vocabulary has to be ahead."""
CHOOSING_SEED, SEEDS = 0, (1, 2, 3)
PARALLEL = 6
RANK = 32
PAGE = Path(__file__).parents[1] / "docs" / "distillation.md"
MARKED = re.compile(r"(<!-- routes -->).*?(<!-- end routes -->)", re.DOTALL)


@dataclass
class Curve:
    """One run: share of valid held-out answers at temperature 1 after so many student tokens."""

    method: str
    rate: float
    seed: int
    tokens: list[int] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    known: float = 0.0
    greedy: float = 0.0
    residual: float = 0.0
    """KL(student|teacher) in nats per token of the student's own held-out answers, at the end."""

    @property
    def score(self) -> float:
        return self.held_out[-1]


class Bench:
    def __init__(self, url: str, api_key: str, routes: Routes, steps: int) -> None:
        self.client = tinsmith.ServiceClient(base_url=url, api_key=api_key)
        self.routes, self.steps = routes, steps
        self.teacher = self.client.create_sampling_client(base_model=TEACHER)

    def run(self, method: str, rate: float, seed: int) -> Curve:
        """`steps` batches of `PROMPTS` questions with `EACH` answers to each; fewer to choose a rate."""
        dice, curve = random.Random(seed), Curve(method, rate, seed)
        run = self.client.create_lora_training_client(STUDENT, rank=RANK, seed=seed)
        teach = METHODS[method]
        choosing = seed == CHOOSING_SEED
        steps = min(self.steps, CHOOSING_STEPS) if choosing else self.steps
        for step in range(steps):
            if step % EVERY == 0 and not choosing:
                self._score(run, curve, step)
            questions = dice.choices(self.routes.known, k=PROMPTS)
            on_policy = method != "sft"
            source = run.save_weights_and_get_sampling_client() if on_policy else self.teacher
            teach(run, ask(source, questions, EACH, seed=seed * 100_000 + step))
            run.optim_step(types.AdamParams(learning_rate=rate, grad_clip_norm=1.0))
        self._score(run, curve, steps)
        self._finish(run, curve)
        return curve

    def _score(self, run: tinsmith.TrainingClient, curve: Curve, step: int) -> None:
        sampler = run.save_weights_and_get_sampling_client()
        answered = [one.answered for one in ask(sampler, self.routes.held_out, 4, seed=7)]
        curve.tokens.append(step * TOKENS_A_STEP)
        curve.held_out.append(share_valid(self.routes, answered))

    def _finish(self, run: tinsmith.TrainingClient, curve: Curve) -> None:
        sampler = run.save_weights_and_get_sampling_client()
        known = random.Random(0).sample(self.routes.known, len(self.routes.held_out))
        curve.known = share_valid(
            self.routes, [one.answered for one in ask(sampler, known, 4, seed=8)]
        )
        greedy = ask(sampler, self.routes.held_out, 1, seed=9, temperature=0.0)
        curve.greedy = share_valid(self.routes, [one.answered for one in greedy])
        own = [datum(one) for one in ask(sampler, self.routes.held_out, 1, seed=10)]
        found = run.forward(own, "x_distill_jsd", {"teacher": TEACHER}).result(600).metrics
        curve.residual = found["distill/divergence:sum"] / found["distill/tokens:sum"]


@dataclass(frozen=True)
class Answer:
    question: Question
    tokens: list[int]
    logprobs: list[float]

    @property
    def answered(self) -> tuple[Question, list[int]]:
        return self.question, self.tokens


def ask(
    sampler: tinsmith.SamplingClient,
    questions: Sequence[Question],
    each: int,
    *,
    seed: int,
    temperature: float = 1.0,
) -> list[Answer]:
    futures = [
        sampler.sample(
            types.ModelInput.from_ints(prompt(question)),
            each,
            types.SamplingParams(
                max_tokens=HOPS, temperature=temperature, seed=seed * 1000 + index
            ),
        )
        for index, question in enumerate(questions)
    ]
    return [
        Answer(question, list(one.tokens), list(one.logprobs or []))
        for question, future in zip(questions, futures, strict=True)
        for one in future.result(600).sequences
    ]


def datum(answer: Answer, **more: np.ndarray) -> types.Datum:
    """Scored on the answer alone."""
    tokens = [*prompt(answer.question), *answer.tokens]
    weights = scored(answer, [1.0] * len(answer.tokens))
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": np.array(tokens[1:]), "weights": weights} | more,
    )


def scored(answer: Answer, values: Sequence[float]) -> np.ndarray:
    before = len(prompt(answer.question)) - 1
    return np.array([0.0] * before + list(values), np.float32)


Run, Answers = tinsmith.TrainingClient, list[Answer]


def imitate(run: Run, answers: Answers) -> None:
    run.forward_backward([datum(one) for one in answers], "cross_entropy").result(600)


def follow_samples(run: Run, answers: Answers) -> None:
    """Advantages of log q - log p, one number for each token that was drawn."""
    asked = {"teacher": TEACHER, "return": "teacher_logprobs"}
    theirs = run.forward([datum(one) for one in answers], "x_distill_jsd", asked).result(600)
    data = []
    for answer, output in zip(answers, theirs.loss_fn_outputs, strict=True):
        sampled = scored(answer, answer.logprobs)
        teacher = np.array(output["teacher_logprobs"].data, np.float32)
        one = datum(answer, logprobs=sampled, advantages=teacher - sampled)
        del one.loss_fn_inputs["weights"]
        data.append(one)
    run.forward_backward(data, "importance_sampling").result(600)


def follow(beta: float) -> Callable[[Run, Answers], None]:
    def teach(run: Run, answers: Answers) -> None:
        config = {"teacher": TEACHER, "beta": beta}
        run.forward_backward([datum(one) for one in answers], "x_distill_jsd", config).result(600)

    return teach


METHODS: dict[str, Callable[[Run, Answers], None]] = {
    "sft": imitate,
    "sampled": follow_samples,
    "full": follow(1.0),
    "jsd": follow(0.5),
}


def together(bench: Bench, jobs: Sequence[tuple[str, float, int]]) -> list[Curve]:
    """Many runs at once: the service trains them side by side."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        curves = []
        for curve in pool.map(lambda job: bench.run(*job), jobs):
            print(
                f"{curve.method:8} lr {curve.rate:<7g} seed {curve.seed}: valid {curve.score:6.1%} "
                f"greedy {curve.greedy:6.1%} KL {curve.residual:.2f}",
                flush=True,
            )
            curves.append(curve)
        return curves


def chosen(curves: Sequence[Curve]) -> dict[str, float]:
    """The rate whose score on known questions is best at the end, per method."""
    best: dict[str, Curve] = {}
    for curve in curves:
        if curve.method not in best or curve.known > best[curve.method].known:
            best[curve.method] = curve
    return {method: curve.rate for method, curve in best.items()}


def scores(curves: Sequence[Curve], method: str, *, known: bool = False) -> list[float]:
    """Of every seed, in points: % of valid answers."""
    mine = [curve for curve in curves if curve.method == method]
    return [100 * (curve.known if known else curve.score) for curve in mine]


def rows(curves: Sequence[Curve]) -> list[Row]:
    """In points of valid held-out answers; the ratio is the gap over its floor."""
    made = []
    for other, floor in FLOORS.items():
        full, theirs = (statistics.mean(scores(curves, name)) for name in ("full", other))
        name = f"distill: full vocabulary - {other}, points over a floor of {floor:g}"
        made.append(Row(name, full, theirs, "% valid", (full - theirs) / floor, floor=1.0))
    return made


def verdicts(curves: Sequence[Curve]) -> list[str]:
    """What may be said of full against each other method: only what every pair of seeds agrees on."""
    lines = []
    for known, place in ((False, "Held-out"), (True, "Known")):
        full = scores(curves, "full", known=known)
        for other in METHODS.keys() - {"full"}:
            theirs = scores(curves, other, known=known)
            gap = statistics.mean(full) - statistics.mean(theirs)
            apart = min(full) > max(theirs) or max(full) < min(theirs)
            seeds = "every seed agrees" if apart else "the seeds do not separate them"
            lines.append(
                f"- {place} questions, full - {other}: {gap:+.1f} points; {seeds}{kept(other, gap)}."
            )
    return sorted(lines)


def kept(other: str, gap: float) -> str:
    if other not in FLOORS:
        return ""
    return (
        f"; the floor of {FLOORS[other]:g} {'holds' if gap >= FLOORS[other] else 'does not hold'}"
    )


def table(curves: Sequence[Curve], teacher: float) -> str:
    """Means over the seeds, and each seed's score, in % of valid answers; then what they separate."""
    lines = [
        f"{STEPS * TOKENS_A_STEP:,} student tokens a run; valid answers of the student at the start: "
        f"{statistics.mean(curve.held_out[0] for curve in curves):.1%}, of the teacher: {teacher:.1%}.",
        "",
        "| method | rate | held out, T=1 (seeds) | known, T=1 (seeds) | greedy | KL(student, teacher) |",
        "|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        mine = [curve for curve in curves if curve.method == method]
        held, known = (scores(curves, method, known=which) for which in (False, True))
        greedy, residual = (
            statistics.mean(getattr(curve, name) for curve in mine)
            for name in ("greedy", "residual")
        )
        lines.append(
            f"| {method} | {mine[0].rate:g} | {told(held)} | {told(known)} | {greedy:.1%} | "
            f"{residual:.2f} |"
        )
    plotted = "![valid answers over student tokens](distill.png)"
    return "\n".join([*lines, "", *verdicts(curves), "", plotted])


def told(points: Sequence[float]) -> str:
    each = ", ".join(f"{one:.1f}" for one in points)
    return f"{statistics.mean(points):.1f} % ({each})"


def plot(curves: Sequence[Curve], path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for method in METHODS:
        mine = [curve for curve in curves if curve.method == method]
        means = [
            statistics.mean(some) for some in zip(*(one.held_out for one in mine), strict=True)
        ]
        axes.plot(mine[0].tokens, [100 * score for score in means], marker="o", label=method)
    axes.set(xlabel="student tokens", ylabel="valid held-out answers, %")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    one_thread()
    began, routes = time.monotonic(), Routes()
    with tempfile.TemporaryDirectory() as folder:
        bases = make_bases(Path(folder), routes, quick=quick)
        print(f"bases made in {time.monotonic() - began:.0f} s", flush=True)
        settings = {
            "TINSMITH_MODELS": f"{STUDENT}={bases['student']},{TEACHER}={bases['teacher']}",
            "TINSMITH_MAX_SAMPLING_SLOTS": "256",
            "TINSMITH_MAX_RESIDENT_RUNS": "64",
            "TINSMITH_MAX_PASS_TOKENS": "8192",
        }
        with running_service(Path(folder), bases["student"], **settings) as service:
            bench = Bench(service.url, service.api_key, routes, 4 if quick else STEPS)
            jobs = [
                (method, rate, CHOOSING_SEED) for method, rates in RATES.items() for rate in rates
            ]
            rates = chosen(together(bench, jobs))
            print(f"rates {rates}, {time.monotonic() - began:.0f} s", flush=True)
            curves = together(bench, [(one, rates[one], seed) for one in rates for seed in SEEDS])
            teacher = share_valid(
                routes, [one.answered for one in ask(bench.teacher, routes.held_out, 4, seed=7)]
            )
    seconds = time.monotonic() - began
    print(f"teacher {teacher:.1%}; {seconds:.0f} s", flush=True)
    if quick:
        return
    result = {"teacher": teacher, "seconds": seconds, "curves": [vars(one) for one in curves]}
    (RESULTS / "distill.json").write_text(json.dumps(result))
    made = MARKED.sub(
        lambda found: f"{found[1]}\n{table(curves, teacher)}\n{found[2]}", PAGE.read_text()
    )
    PAGE.write_text(made)
    plot(curves, PAGE.parent / "distill.png")
    finish(rows(curves))


if __name__ == "__main__":
    main()
