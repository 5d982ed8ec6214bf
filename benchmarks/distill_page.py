"""What the distillation benchmarks say of their curves: verdicts, tables and pictures for a page.

A picture is drawn twice, for light and for dark pages. Nothing here runs a model.
"""

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PAGE = Path(__file__).parents[1] / "docs" / "distillation.md"
COLOURS = {"light": ("white", "#1f2328"), "dark": ("#0d1117", "#e6edf3")}
"""Background and ink of GitHub's pages."""
LINES = ("#8c959f", "#bc6c25", "#2f81f7", "#3fa34d")
MARKERS = "sDo^"


@dataclass(frozen=True)
class Line:
    """One method: at every point the values of all its seeds."""

    label: str
    tokens: Sequence[float]
    values: Sequence[Sequence[float]]


def told(values: Sequence[float], digits: int, unit: str = "") -> str:
    each = ", ".join(f"{one:.{digits}f}" for one in values)
    return f"{statistics.mean(values):.{digits}f}{unit} ({each})"


def apart(some: Sequence[float], others: Sequence[float]) -> bool:
    """Whether every seed of the one lies on the same side of every seed of the other."""
    return min(some) > max(others) or max(some) < min(others)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]])


def picture(name: str, alt: str) -> str:
    """Of the two files that `draw` writes: the one that fits the reader's page."""
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="images/{name}-dark.png">'
        f'<img alt="{alt}" src="images/{name}-light.png" width="700"></picture>'
    )


def fill(mark: str, inside: str, page: Path = PAGE) -> None:
    """Puts it between `<!-- mark -->` and `<!-- end mark -->`, which have to be there."""
    marked = re.compile(rf"(<!-- {mark} -->).*?(<!-- end {mark} -->)", re.DOTALL)
    made, times = marked.subn(lambda found: f"{found[1]}\n{inside}\n{found[2]}", page.read_text())
    if times != 1:
        raise ValueError(f"{page.name}: it has {times} parts marked {mark}; it takes one.")
    page.write_text(made)


def draw(
    lines: Sequence[Line], label: str, name: str, folder: Path = PAGE.parent / "images"
) -> None:
    """Means over the seeds with the span of the seeds behind them."""
    for theme, (ground, ink) in COLOURS.items():
        figure = _figure(lines, label, ground, ink)
        figure.savefig(folder / f"{name}-{theme}.png", dpi=140)


def _figure(lines: Sequence[Line], label: str, ground: str, ink: str) -> Figure:
    figure = Figure(figsize=(7, 4), layout="constrained", facecolor=ground)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for line, colour, marker in zip(lines, LINES, MARKERS, strict=False):
        spans = [(min(each), max(each)) for each in line.values]
        axes.fill_between(line.tokens, *zip(*spans, strict=True), color=colour, alpha=0.2, lw=0)
        means = [statistics.mean(each) for each in line.values]
        axes.plot(line.tokens, means, color=colour, marker=marker, ms=5, label=line.label)
    axes.set_facecolor(ground)
    axes.set_xlabel("student tokens", color=ink)
    axes.set_ylabel(label, color=ink)
    axes.set_ylim(bottom=0)
    axes.tick_params(colors=ink)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(ink)
    axes.grid(axis="y", color=ink, alpha=0.15)
    axes.legend(labelcolor=ink, frameon=False)
    return figure
