"""The divergence over a whole vocabulary: memory and time beside TRL's, on the same hidden states.

N = 1,024 rows of H = 576, V = 49,152 (SmolLM2-135M's head), JSD with beta 0.5: from both models' hidden
states to the student's gradient. Ours is the service's head and lesson, TRL's the chunked loss of its
DistillationTrainer and the plain one of its GKDTrainer, both with autograd.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.distill_config import JSDConfig
from tinsmith_worker.engine.head import Asked, Pairs, score
from tinsmith_worker.engine.lessons import JSDLesson, Pupil
from tinsmith_worker.engine.linear import LinearGroup
from tinsmith_worker.engine.numerics import Numerics
from tinsmith_worker.engine.readings import Reading, Teacher
from tinsmith_worker.engine.taught import Taught
from torch import Tensor

from benchmarks.harness import (
    Row,
    Variant,
    asked_rounds,
    finish,
    interleave,
    one_thread,
    print_timings,
)
from benchmarks.memory import peak_bytes

ROWS, HIDDEN, VOCAB, BETA = 1024, 576, 49152, 0.5
LIMIT_GIB = 0.25
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


class _Head(BaseModel):
    """The head of a base model and nothing else."""

    def __init__(self, weight: Tensor) -> None:
        self.head = LinearGroup(("lm_head",), [weight], [None])
        self.numerics, self.device = Numerics.fast(), torch.device("cpu")
        self._softcap, self._logit_factor = None, 1.0

    def _hidden(self, current: Any) -> Tensor:
        raise AssertionError("hidden states are given")


class Problem:
    """One frozen head, and hidden states of a student and of a teacher."""

    def __init__(self, rows: int = ROWS, head: Tensor | None = None) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.rows = rows
        self.student, self.teacher = random(rows, HIDDEN), random(rows, HIDDEN)
        self.head = random(VOCAB, HIDDEN) * HIDDEN**-0.5 if head is None else head
        self.targets = torch.arange(rows) % VOCAB
        self.model: Any = _Head(self.head)

    def ours(self) -> tuple[float, Tensor]:
        model, every = self.model, np.arange(self.rows)
        reading = Reading(Teacher("t", model), every, every, self.targets.numpy(), every)
        pupil = Pupil(
            torch.full((self.rows,), 1 / self.rows),
            self.targets,
            None,
            [reading],
            np.array([0, self.rows]),
        )
        taught = self._taught(reading)
        lesson = JSDLesson(JSDConfig(teacher="t", beta=BETA), pupil, taught)
        pairs = Pairs(every, self.targets.numpy(), lesson.idle)
        hidden = self.student.detach().requires_grad_()
        asked = Asked(pairs, None, None, lesson.weigh, lesson.whole_rows)  # type: ignore[arg-type]
        [logprobs], back = score(model, hidden, [asked])
        assert back is not None
        return float(lesson.loss(logprobs)), back

    def _taught(self, reading: Any) -> Any:
        taught = Taught([reading])
        taught.keep(0, self.teacher, np.arange(self.rows))
        return taught

    def trl_chunked(self) -> tuple[float, Tensor]:
        from trl.trainer.distillation_trainer import _chunked_divergence_loss

        hidden = self.student[None].detach().requires_grad_()
        mask = torch.ones(1, self.rows, dtype=torch.long)
        loss, _, _ = _chunked_divergence_loss(
            hidden, self.teacher[None], self.head, self.head, mask, BETA
        )
        loss.backward()
        assert hidden.grad is not None
        return float(loss), hidden.grad[0]

    def trl_whole(self) -> tuple[float, Tensor]:
        from trl.experimental.gkd import GKDTrainer

        hidden = self.student[None].detach().requires_grad_()
        with torch.no_grad():
            theirs = self.teacher[None] @ self.head.T
        labels = self.targets[None]
        loss = GKDTrainer.generalized_jsd_loss(hidden @ self.head.T, theirs, labels, beta=BETA)
        loss.backward()
        assert hidden.grad is not None
        return float(loss), hidden.grad[0]


WAYS = ("ours", "trl_chunked", "trl_whole")


def extra_gib(way: str) -> float:
    return peak_bytes(partial(_prepared, way)) / 2**30


def _prepared(way: str) -> Callable[[], object]:
    """Once on a few rows, so that imports, kernels and the library's buffers are there already."""
    one_thread()
    problem = Problem()
    getattr(Problem(8, problem.head), way)()
    run: Callable[[], object] = getattr(problem, way)
    return run


def main() -> None:
    one_thread()
    rounds, problem = asked_rounds(3), Problem()
    values = {way: getattr(problem, way)() for way in WAYS}
    for way in WAYS[1:]:
        assert abs(values[way][0] - values["ours"][0]) < 1e-4 * abs(values["ours"][0])
        torch.testing.assert_close(values[way][1], values["ours"][1], atol=1e-7, rtol=1e-3)
    comparison = interleave(
        [Variant(way, getattr(problem, way)) for way in WAYS], rounds=rounds, warm_up=False
    )
    print_timings("JSD from hidden states, with the gradient", comparison, tokens=ROWS)
    peaks = {way: extra_gib(way) for way in WAYS}
    name = "distill: the divergence of 1,024 tokens over 49,152"
    finish(
        [
            Row.at_most(f"{name}, extra memory", peaks["ours"], LIMIT_GIB, "GiB"),
            Row(
                f"{name}, memory / TRL chunked",
                peaks["ours"],
                peaks["trl_chunked"],
                "GiB",
                peaks["trl_chunked"] / peaks["ours"],
                floor=1.0,
            ),
            Row(
                f"{name}, memory / TRL whole",
                peaks["ours"],
                peaks["trl_whole"],
                "GiB",
                peaks["trl_whole"] / peaks["ours"],
                floor=1.0,
            ),
            comparison.row(f"{name} / TRL chunked", ours="ours", other="trl_chunked", floor=1.0),
            comparison.row(f"{name} / TRL whole", ours="ours", other="trl_whole", floor=1.0),
        ]
    )


if __name__ == "__main__":
    main()
