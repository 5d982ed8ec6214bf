"""`python -m tinsmith.demo`: measure, tune, stop, resume, distil, measure again."""

import argparse
import os
import time
from pathlib import Path
from typing import Any

import tinker
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tinsmith.demo import distill, task
from tinsmith.demo.measure import Figures, measure
from tinsmith.demo.plot import draw
from tinsmith.demo.tune import batches, tune
from tinsmith.tokenizers import fetch_tokenizer

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
RANK = 16
TUNE_STEPS, RESUMED_STEPS, DISTILL_STEPS = 24, 8, 20
HELD_OUT = 40


def main() -> None:
    parser = argparse.ArgumentParser(prog="tinsmith.demo", description=__doc__)
    parser.add_argument("--base-url", default=os.environ.get("TINKER_BASE_URL"))
    parser.add_argument("--api-key", default=os.environ.get("TINKER_API_KEY"))
    parser.add_argument("--out", type=Path, default=Path("demo.png"))
    arguments = parser.parse_args()
    started = time.monotonic()
    with Progress(
        TextColumn("{task.description:<34}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[note]}"),
        TimeElapsedColumn(),
        console=Console(),
    ) as progress:
        table = run(arguments.base_url, arguments.api_key, arguments.out, progress)
    Console().print(table)
    Console().print(f"Curves: {arguments.out}. It took {time.monotonic() - started:.0f} s.")


class Bar:
    """A line of the progress display that remembers what it was told."""

    def __init__(self, progress: Progress, name: str, total: int) -> None:
        self.values: list[float] = []
        self._progress = progress
        self._task = progress.add_task(name, total=total, note="")

    def __call__(self, value: float) -> None:
        self.values.append(value)
        self._progress.update(self._task, advance=1, note=f"{value:.3f}")


def run(base_url: str, api_key: str, out: Path, progress: Progress) -> Table:
    tokenizer = fetch_tokenizer(base_url, api_key, MODEL)
    training, held_out = task.load()
    held_out = held_out[:HELD_OUT]
    look = Bar(progress, "Measuring (exact match)", 3)

    def figures(sampler: tinker.SamplingClient) -> Figures:
        found = measure(sampler, tokenizer, held_out)
        look(found.exact_match)
        return found

    with tinker.ServiceClient(base_url=base_url, api_key=api_key) as service:
        before = figures(service.create_sampling_client(base_model=MODEL).result())
        source = batches(training)
        bar = Bar(progress, "Fine-tuning (loss)", TUNE_STEPS + RESUMED_STEPS)
        first = service.create_lora_training_client(MODEL, rank=RANK, seed=1).result()
        tune(first, tokenizer, source, TUNE_STEPS, bar)
        saved = first.save_state("halfway", overwrite=True).result().path
    # The first client is gone. A new one goes on where it stopped, with its optimizer.
    with tinker.ServiceClient(base_url=base_url, api_key=api_key) as service:
        resumed = service.create_training_client_from_state_with_optimizer(saved).result()
        tune(resumed, tokenizer, source, RESUMED_STEPS, bar)
        teacher = resumed.save_weights_and_get_sampling_client().result()
        tuned = figures(teacher)
        student = service.create_lora_training_client(MODEL, rank=RANK, seed=2).result()
        gap = Bar(progress, "Distilling (KL per token)", DISTILL_STEPS)
        distill.distill(student, teacher, tokenizer, batches(training), DISTILL_STEPS, gap)
        sampler = student.save_weights_and_get_sampling_client().result()
        distilled = figures(sampler)
        after = _gap(sampler, teacher, tokenizer, held_out)
        fresh = service.create_sampling_client(base_model=MODEL).result()
        base_gap = _gap(fresh, teacher, tokenizer, held_out)
    draw(bar.values, TUNE_STEPS, gap.values, out)
    return _table(
        (("base model", before, base_gap), ("fine-tuned (teacher)", tuned, 0.0)), distilled, after
    )


def _gap(
    sampler: tinker.SamplingClient,
    teacher: tinker.SamplingClient,
    tokenizer: Any,
    held_out: list[task.Question],
) -> float:
    """Reverse KL per token to the teacher, on what this model itself says to held-out questions."""
    prompts = [tokenizer.encode(question.prompt) for question in held_out[:16]]
    _, gaps = distill.score(sampler, teacher, prompts, seed=0)
    return sum(gaps) / len(gaps)


def _table(rows: tuple[tuple[str, Figures, float], ...], distilled: Figures, after: float) -> Table:
    table = Table(
        "model", "held-out loss", "exact match", "KL to teacher", title="Held-out questions"
    )
    for name, found, gap in (*rows, ("distilled student", distilled, after)):
        table.add_row(name, f"{found.loss:.3f}", f"{found.exact_match:.0%}", f"{gap:.3f}")
    return table


if __name__ == "__main__":
    main()
