"""Curves of a run as a picture. Needs matplotlib."""

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

CURVES = {
    "divergence": "divergence (nats a token)",
    "sampled_kl": "sampled reverse KL (nats a token)",
    "loss": "loss",
    "length": "tokens of a completion",
}


def read(path: str | Path) -> list[dict[str, float]]:
    """The rows of a JSONL report."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def draw(runs: Mapping[str, Sequence[Mapping[str, float]]], path: str | Path) -> None:
    """One panel for each figure that some run has, a line for each run, over student tokens."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [name for name in CURVES if any(name in row for rows in runs.values() for row in rows)]
    if not shown:
        raise ValueError(f"runs: none of {', '.join(CURVES)} is in their rows.")
    figure = Figure(figsize=(5 * len(shown), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for label, rows in runs.items():
            seen = accumulate(row["student_tokens"] for row in rows)
            points = [
                (tokens, row[name]) for tokens, row in zip(seen, rows, strict=True) if name in row
            ]
            if points:
                axes.plot(*zip(*points, strict=True), label=label)
        axes.set(title=CURVES[name], xlabel="student tokens")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend()
    figure.savefig(path, dpi=120)
