"""What a loss with a teacher does with one micro-batch of a request; x_distill_jsd's part.

While some rows of the student's logits are there, so are the teacher's of the same tokens: divergence
and gradient are found in the same sweep, and [N, vocab] is held on neither side.

Legend: P pairs of the micro-batch, L rows wanted of its teachers, R looked at together, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tinsmith_worker.engine.distill_config import DistillConfig, JSDConfig
from tinsmith_worker.engine.divergence import Found, Measure, diverge
from tinsmith_worker.engine.elementwise import logsumexp
from tinsmith_worker.engine.head import Rows
from tinsmith_worker.engine.readings import Ints, Reading
from tinsmith_worker.engine.taught import Taught

TOGETHER = 16
"""Rows whose divergence is found at a time: a few tensors of them stay in a core's cache."""


@dataclass(frozen=True, eq=False)
class Pupil:
    """The pairs of a micro-batch as a lesson sees them, [P] each."""

    weights: Tensor
    targets: Tensor
    sampled: Tensor | None
    """log p that the tokens were sampled with."""
    readings: Sequence[Reading]
    starts: Ints
    """Where each datum's pairs begin, and where the last ends."""

    @property
    def size(self) -> int:
        return int(self.starts[-1])


@dataclass
class Notes:
    """What was found for each pair, [P] each; 0 where nothing was compared."""

    divergence: Tensor
    entropy: Tensor
    teacher_entropy: Tensor
    teacher_logprobs: Tensor
    student_mass: Tensor
    teacher_mass: Tensor
    compared: Tensor
    loss: Tensor

    @classmethod
    def empty(cls, size: int, device: torch.device) -> "Notes":
        return cls(*(torch.zeros(size, device=device) for _ in range(8)))


class Lesson:
    """Base: cross-entropy of weight `ce_weight` on the targets, which every such loss may mix in."""

    needs_logprobs = False
    """Whether the student's log p of all pairs must be known before any of them weighs."""
    whole_rows: Rows | None = None
    together: Ints | None = None
    """For each pair, ascending, the group that must be looked at as one; None: each for itself."""

    def __init__(self, config: DistillConfig, pupil: Pupil, taught: Taught) -> None:
        self.config, self.pupil, self.taught = config, pupil, taught
        self.notes = Notes.empty(pupil.size, pupil.weights.device)
        self.idle: npt.NDArray[np.bool_] = (pupil.weights == 0).cpu().numpy()
        """Pairs that cannot weigh anything."""

    def begin(self, logprobs_P: Tensor | None) -> None:
        """After the teachers' passes; with the student's log p where that is needed."""

    def weigh(self, logprobs: Tensor, pairs: Ints) -> Tensor:
        """d loss / d log p of some pairs."""
        return -self.config.ce_weight * self.pupil.weights[_on(pairs, logprobs.device)]

    def loss(self, logprobs_P: Tensor) -> Tensor:
        """The whole loss, once all pairs have been looked at."""
        imitation = -self.config.ce_weight * (self.pupil.weights * logprobs_P).sum()
        return imitation + self.notes.loss.sum()

    def metrics(self) -> dict[str, float]:
        notes = self.notes
        scored = float((self.pupil.weights != 0).sum())
        return {
            "distill/divergence:sum": float(notes.divergence.sum()),
            "distill/tokens:sum": float(notes.compared.sum()),
            "distill/entropy:sum": float(notes.entropy.sum()),
            "distill/teacher_entropy:sum": float(notes.teacher_entropy.sum()),
            "distill/support_mass_student:sum": float(notes.student_mass.sum()),
            "distill/support_mass_teacher:sum": float(notes.teacher_mass.sum()),
            "distill/unaligned_tokens:sum": scored - float(notes.compared.sum()),
        }

    def fields(self) -> dict[str, Tensor]:
        """What was asked back, [P] each."""
        return {name: getattr(self.notes, name) for name in self.config.wanted}

    def lines(self) -> Ints:
        """For each pair its row among the teachers', -1 where there is none, [P]."""
        found = [
            np.where(reading.line >= 0, reading.line + start, -1)
            for reading, start in zip(self.pupil.readings, self.taught.starts, strict=False)
        ]
        return np.concatenate(found)


class DenseLesson(Lesson):
    """A divergence over whole rows, token by token, with the teacher's row of the same token."""

    def __init__(
        self, config: DistillConfig, pupil: Pupil, taught: Taught, measure: Measure, factor: float
    ) -> None:
        super().__init__(config, pupil, taught)
        self.measure, self.factor = measure, factor
        self.line = self.lines()
        self.whole_rows = self.look

    def look(
        self, logits_RV: Tensor, rows: Ints, pairs: Ints, logprobs: Tensor, into_RV: Tensor | None
    ) -> None:
        live = np.flatnonzero(~self.idle[pairs] & (self.line[pairs] >= 0))
        teachers = self.taught.teacher[self.line[pairs[live]]]
        for teacher in np.unique(teachers):
            mine = live[teachers == teacher]
            theirs_RV = self.taught.logits(int(teacher), self.line[pairs[mine]])
            for start in range(0, mine.size, TOGETHER):
                some = mine[start : start + TOGETHER]
                ours_RV = logits_RV[_on(rows[some], logits_RV.device)]
                back_RV = self._compare(
                    ours_RV,
                    theirs_RV[start : start + TOGETHER],
                    _on(pairs[some], logits_RV.device),
                    logprobs[_on(some, logprobs.device)],
                    wanted=into_RV is not None,
                )
                if into_RV is not None and back_RV is not None:
                    into_RV.index_add_(0, _on(rows[some], into_RV.device), back_RV)

    def _compare(
        self,
        ours_RV: Tensor,
        theirs_RV: Tensor,
        pairs_R: Tensor,
        logprobs_R: Tensor,
        *,
        wanted: bool,
    ) -> Tensor | None:
        """Note what they differ by; answers d loss / d logits."""
        targets_R = self.pupil.targets[pairs_R]
        found = diverge(ours_RV, theirs_RV, targets_R, self.measure, gradient=wanted)
        factor_R = self.pupil.weights[pairs_R] * self.factor * self.share(pairs_R, logprobs_R)
        self._note(found, theirs_RV, pairs_R, targets_R)
        bounded_R, open_R = self.bounded(found.divergence)
        self.notes.loss[pairs_R] = bounded_R * factor_R
        if found.gradient is None:
            return None
        return found.gradient.mul_((factor_R * open_R)[:, None])

    def share(self, pairs_R: Tensor, logprobs_R: Tensor) -> Tensor | float:
        return 1.0

    def bounded(self, divergence_R: Tensor) -> tuple[Tensor, Tensor | float]:
        """What of it counts, and where it has a slope."""
        return divergence_R, 1.0

    def _note(self, found: Found, theirs_RV: Tensor, pairs_R: Tensor, targets_R: Tensor) -> None:
        notes = self.notes
        taken_R1 = theirs_RV.gather(1, targets_R.clamp(max=theirs_RV.shape[1] - 1)[:, None])
        notes.divergence[pairs_R] = found.divergence
        notes.entropy[pairs_R] = found.entropy
        notes.teacher_entropy[pairs_R] = found.teacher_entropy
        notes.teacher_logprobs[pairs_R] = taken_R1[:, 0] - logsumexp(theirs_RV)
        notes.student_mass[pairs_R] = found.student_mass
        notes.teacher_mass[pairs_R] = found.teacher_mass
        notes.compared[pairs_R] = 1.0


class JSDLesson(DenseLesson):
    def __init__(self, config: JSDConfig, pupil: Pupil, taught: Taught) -> None:
        super().__init__(config, pupil, taught, config.measure, config.distill_weight)
        self._clip, self._most = config.is_clip, config.max_divergence

    def share(self, pairs_R: Tensor, logprobs_R: Tensor) -> Tensor | float:
        """p/q of the target up to is_clip, without a gradient of its own (SDFT, 2601.19897)."""
        if not self._clip or self.pupil.sampled is None:
            return 1.0
        log_ratio_R = (logprobs_R - self.pupil.sampled[pairs_R]).clamp(-20, 20)
        return log_ratio_R.exp().clamp(max=self._clip)

    def bounded(self, divergence_R: Tensor) -> tuple[Tensor, Tensor | float]:
        if not self._most:
            return divergence_R, 1.0
        return divergence_R.clamp(max=self._most), divergence_R < self._most


def _on(indices: Ints, device: torch.device) -> Tensor:
    return torch.from_numpy(indices).to(device)
