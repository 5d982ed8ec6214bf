"""Runs variants of one piece of work side by side and records how they compare.

The machine may be shared, so absolute times drift: the variants take turns within a round, a
different one begins each round, and what counts is the median of the rounds' own ratios, in CPU
seconds on one thread. The harness has never heard of engines, models or tokens.

    one_thread()
    batch, rival = ragged_sft(), Rival(folder, torch.bfloat16)
    comparison = interleave([
        Variant("ours", lambda: our_forward_backward(batch)),
        Variant("peft padded", lambda: rival.forward_backward(batch), set_up=rival.zero_grad),
    ])
    print_timings("ragged", comparison, tokens=batch.num_tokens)
    record([comparison.row("ragged bf16 / peft padded", ours="ours", other="peft padded", floor=3.0)])
"""

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

RESULTS = Path(__file__).parent / "results"
LATEST = RESULTS / "latest.json"


@dataclass(frozen=True)
class Variant:
    """One way of doing the work; `set_up` runs before every round, untimed."""

    name: str
    run: Callable[[], object]
    set_up: Callable[[], object] | None = None


@dataclass(frozen=True)
class Timing:
    cpu_seconds: float
    wall_seconds: float


@dataclass(frozen=True)
class Comparison:
    """Every variant's timings, round by round."""

    rounds: dict[str, list[Timing]]

    def cpu_seconds(self, name: str) -> float:
        return median(timing.cpu_seconds for timing in self.rounds[name])

    def wall_seconds(self, name: str) -> float:
        return median(timing.wall_seconds for timing in self.rounds[name])

    def ratio(self, ours: str, other: str) -> float:
        """How many times the CPU seconds of `ours` `other` takes: the median of the rounds' ratios."""
        pairs = zip(self.rounds[ours], self.rounds[other], strict=True)
        return median(theirs.cpu_seconds / mine.cpu_seconds for mine, theirs in pairs)

    def row(self, name: str, *, ours: str, other: str, floor: float | None = None) -> "Row":
        return Row(
            name=name,
            ours=self.cpu_seconds(ours) * 1e3,
            other=self.cpu_seconds(other) * 1e3,
            unit="CPU ms",
            ratio=self.ratio(ours, other),
            floor=floor,
        )

    def share_row(self, name: str, *, ours: str, limit_seconds: float) -> "Row":
        """Against what the hardware needs at least; the ratio is the share of its limit reached."""
        seconds = self.cpu_seconds(ours)
        return Row(name, seconds * 1e3, limit_seconds * 1e3, "CPU ms", limit_seconds / seconds)


@dataclass(frozen=True)
class Row:
    """One line of the results. `ratio` is above 1 where ours is better, whatever the unit."""

    name: str
    ours: float
    other: float
    unit: str
    ratio: float
    floor: float | None = None

    @property
    def holds(self) -> bool:
        return self.floor is None or self.ratio >= self.floor

    @classmethod
    def at_most(cls, name: str, measured: float, limit: float, unit: str) -> "Row":
        """A number with a largest allowed value. A measured 0 counts as a millionth of it."""
        return cls(name, measured, limit, unit, limit / max(measured, limit * 1e-6), floor=1.0)


def one_thread() -> None:
    """Every benchmark's first line: with more, one stalled thread is everybody's stall."""
    torch.set_num_threads(1)


def asked_rounds(default: int) -> int:
    """`--rounds N` of the command line: fewer for a look, more for figures to keep."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=default)
    return max(1, int(parser.parse_args().rounds))


def interleave(variants: Sequence[Variant], *, rounds: int = 3, warm_up: bool = True) -> Comparison:
    """Time each variant once a round; the first round only warms up, unless told otherwise."""
    timings: dict[str, list[Timing]] = {variant.name: [] for variant in variants}
    if len(timings) < len(variants):
        raise ValueError("two variants share a name: give each its own")
    if warm_up:
        for variant in variants:
            _time(variant)
    for turn in range(rounds):
        first = turn % len(variants)
        for variant in [*variants[first:], *variants[:first]]:
            timings[variant.name].append(_time(variant))
    return Comparison(timings)


def _time(variant: Variant) -> Timing:
    if variant.set_up is not None:
        variant.set_up()
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    variant.run()
    return Timing(cpu_seconds=time.process_time() - cpu, wall_seconds=time.perf_counter() - wall)


def print_timings(title: str, comparison: Comparison, *, tokens: int | None = None) -> None:
    """Medians of every variant, and how many times the CPU time of the first each takes."""
    print(f"\n{title}")
    first = next(iter(comparison.rounds))
    for name in comparison.rounds:
        cpu = comparison.cpu_seconds(name)
        speed = f"{tokens / cpu:9.0f} tokens/s" if tokens else ""
        print(
            f"  {name:<44} {cpu * 1e3:9.1f} CPU ms {comparison.wall_seconds(name) * 1e3:9.1f} wall ms"
            f"{speed}  {comparison.ratio(first, name):6.2f}x"
        )


def print_rows(rows: Iterable[Row]) -> None:
    print(f"\n{'':<52} {'ours':>10} {'other':>10}  {'unit':<12} {'ratio':>6} {'floor':>6}")
    for row in rows:
        floor = "" if row.floor is None else f"{row.floor:6.2f}"
        verdict = "" if row.holds else "  below its floor"
        print(
            f"{row.name:<52} {row.ours:>10.4g} {row.other:>10.4g}  {row.unit:<12}"
            f" {row.ratio:>6.2f} {floor:>6}{verdict}"
        )


def finish(rows: Sequence[Row]) -> None:
    """A benchmark's last line."""
    print_rows(rows)
    record(rows)


def record(rows: Iterable[Row], path: Path = LATEST) -> None:
    """Put the rows in the results in place of those of the same name; the others stay."""
    known = {row["name"]: row for row in json.loads(path.read_text())} if path.exists() else {}
    for row in rows:
        known[row.name] = {
            key: _rounded(value) if isinstance(value, float) else value
            for key, value in asdict(row).items()
        }
    lines = ",\n".join(json.dumps(known[name]) for name in sorted(known))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"[\n{lines}\n]\n")


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
