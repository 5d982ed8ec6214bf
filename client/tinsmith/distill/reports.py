"""Where metrics go: a table on the console, a JSONL file, wandb, tensorboard.

A report is a function of the step and its metrics. All of them are closed at the end.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

Metrics = Mapping[str, float]
COLUMNS = ("loss", "divergence", "sampled_kl", "length", "grad_norm", "seconds")


class Report(Protocol):
    def write(self, step: int, metrics: Metrics) -> None: ...

    def resume(self, step: int) -> None:
        """Steps from this one on will be written again."""
        ...

    def close(self) -> None: ...


class JSONL:
    """One object a line. A line belongs to a step; those that a resumed run repeats are dropped."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, step: int, metrics: Metrics) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def resume(self, step: int) -> None:
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step]
        self.path.write_text("".join(kept), encoding="utf-8")

    def close(self) -> None: ...


class ConsoleTable:
    """A progress bar, and a row of figures for every `every` steps."""

    def __init__(self, steps: int, every: int = 1) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        self._console = Console()
        self._every = every
        self._columns: list[str] = []
        self._progress = Progress(
            "distilling",
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._progress.add_task("distilling", total=steps)
        self._progress.start()

    def write(self, step: int, metrics: Metrics) -> None:
        if not self._columns:
            self._columns = [name for name in COLUMNS if name in metrics]
            self._console.print(_row("step", self._columns), style="bold")
        if step % self._every == 0:
            cells = [f"{metrics[name]:.4g}" for name in self._columns if name in metrics]
            self._console.print(_row(str(step), cells))
        self._progress.update(self._task, completed=step + 1)

    def resume(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def close(self) -> None:
        self._progress.stop()


def _row(first: str, cells: Sequence[str]) -> str:
    return f"{first:>6}" + "".join(f"{cell:>12}" for cell in cells)


class Wandb:
    """Needs wandb. Keywords are those of wandb.init."""

    def __init__(self, **settings: Any) -> None:
        import wandb

        self._run = wandb.init(**settings)

    def write(self, step: int, metrics: Metrics) -> None:
        self._run.log(dict(metrics), step=step)

    def resume(self, step: int) -> None: ...

    def close(self) -> None:
        self._run.finish()


class TensorBoard:
    """Needs tensorboard."""

    def __init__(self, folder: str | Path) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def write(self, step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def resume(self, step: int) -> None: ...

    def close(self) -> None:
        self._writer.close()


class Reports:
    """Several as one, closed together."""

    def __init__(self, members: Sequence[Report]) -> None:
        self._members = members

    def write(self, step: int, metrics: Metrics) -> None:
        for member in self._members:
            member.write(step, metrics)

    def resume(self, step: int) -> None:
        for member in self._members:
            member.resume(step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for member in self._members:
            member.close()
