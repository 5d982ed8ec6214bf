"""The curves of the demo as one picture."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt


def draw(losses: list[float], resumed_at: int, gaps: list[float], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot(range(1, len(losses) + 1), losses, color="#1f5fa8")
    left.axvline(resumed_at + 0.5, color="#999999", linestyle="--", linewidth=1)
    left.annotate(
        "resumed in a new client",
        (resumed_at + 0.5, max(losses)),
        xytext=(4, -8),
        textcoords="offset points",
        fontsize=8,
        color="#666666",
    )
    left.set(title="Supervised fine-tuning", xlabel="step", ylabel="loss (nats per answer token)")
    right.plot(range(1, len(gaps) + 1), gaps, color="#b3541e")
    right.set(
        title="On-policy distillation of a fresh student",
        xlabel="step",
        ylabel="KL to the teacher (nats per token)",
    )
    for axes in (left, right):
        axes.set_ylim(bottom=min(0.0, *axes.get_ylim()))
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
