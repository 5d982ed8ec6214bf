"""One request's micro-batch beside its teachers: their hidden states, and what the two differ by.

A teacher's pass comes first and keeps nothing but the hidden states of the rows that are compared.
Then, while some rows of the student's logits are there, so are the teacher's of the same tokens:
divergence and gradient are found in the same sweep, and [N, vocab] is held on neither side.

Legend: P pairs of the micro-batch, L pairs that are scored, R pairs looked at together, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.batching import Group, cut, group_by_beginning
from tinsmith_worker.engine.distill_config import JSDConfig
from tinsmith_worker.engine.divergence import Found, diverge
from tinsmith_worker.engine.elementwise import logsumexp
from tinsmith_worker.engine.micro_batch import MicroBatch
from tinsmith_worker.engine.packed import AdapterRows
from tinsmith_worker.engine.readings import Ints, Reading, Teacher
from tinsmith_worker.engine.values import Datum

TOGETHER = 16
"""Rows whose divergence is found at a time: a few tensors of them stay in a core's cache."""


class Taught:
    """The teachers' hidden states for the scored pairs of one micro-batch."""

    def __init__(self, readings: Sequence[Reading], scored: Sequence[npt.NDArray[np.bool_]]):
        """`readings` and `scored` by datum, in the order of the pairs."""
        self._readings = readings
        self._live = [
            np.flatnonzero(mask & (reading.rows >= 0))
            for reading, mask in zip(readings, scored, strict=True)
        ]
        self._starts = np.cumsum([0, *(mask.size for mask in scored)])
        self.size = int(self._starts[-1])
        self._held: dict[int, list[Tensor]] = {}
        self._owners: dict[int, Teacher] = {}
        self.place = np.full(self.size, -1)
        """For each pair its row among its teacher's hidden states, -1 where there is none."""
        self.teacher = np.full(self.size, -1)
        """For each pair the id of its teacher."""

    def units(self, max_tokens: int) -> list["Unit"]:
        """Its sequences by teacher, those that begin alike together."""
        made = []
        by_teacher: dict[int, list[int]] = {}
        for index, reading in enumerate(self._readings):
            if self._live[index].size:
                by_teacher.setdefault(id(reading.teacher), []).append(index)
        for members in by_teacher.values():
            tokens = [self._readings[index].tokens for index in members]
            parts = cut(group_by_beginning(tokens), [one.size for one in tokens], max_tokens)
            made += [Unit(self, members, tokens, groups) for groups in parts]
        return made

    def keep(self, index: int, hidden_MH: Tensor) -> None:
        """One datum's: of all rows of its sequence those that are compared."""
        reading, live = self._readings[index], self._live[index]
        teacher = id(reading.teacher)
        held = self._held.setdefault(teacher, [])
        self._owners[teacher] = reading.teacher
        first = sum(one.shape[0] for one in held)
        rows = torch.from_numpy(reading.rows[live]).to(hidden_MH.device)
        held.append(hidden_MH[rows])
        pairs = self._starts[index] + live
        self.place[pairs] = np.arange(first, first + live.size)
        self.teacher[pairs] = teacher

    def logits(self, teacher: int, places: Ints) -> Tensor:
        """fp32 [R, V] of some of one teacher's pairs."""
        owner = self._owners[teacher]
        if len(self._held[teacher]) > 1:
            self._held[teacher] = [torch.cat(self._held[teacher])]
        [hidden] = self._held[teacher]
        rows = torch.from_numpy(places).to(hidden.device)
        adapters = []
        if owner.adapter is not None:
            adapters = [AdapterRows(slice(0, places.size), owner.adapter)]
        return owner.model.logits(hidden[rows], adapters)


@dataclass(frozen=True, eq=False)
class Unit:
    """Sequences of one teacher and one micro-batch that go through a pass together."""

    taught: Taught
    members: list[int]
    tokens: list[npt.NDArray[np.int32]]
    groups: list[Group]

    @property
    def reader(self) -> Teacher:
        return self.taught._readings[self.members[0]].teacher

    @property
    def num_tokens(self) -> int:
        sizes = [one.size for one in self.tokens]
        return sum(group.num_tokens(sizes) for group in self.groups)


def consult(taught: Sequence[Taught], max_tokens: int) -> None:
    """As few passes of each teacher's model as the budget allows, whoever asks."""
    waiting: dict[int, list[Unit]] = {}
    for one in taught:
        for unit in one.units(max_tokens):
            waiting.setdefault(id(unit.reader.model), []).append(unit)
    for units in waiting.values():
        while units:
            chosen = [units.pop(0)]
            room = max_tokens - chosen[0].num_tokens
            while units and units[0].num_tokens <= room:
                room -= units[0].num_tokens
                chosen.append(units.pop(0))
            _read(chosen[0].reader.model, chosen)


@torch.no_grad()
def _read(model: BaseModel, units: Sequence[Unit]) -> None:
    segments, batches, rows = [], [], 0
    for unit in units:
        data = [Datum(tokens, {}) for tokens in unit.tokens]
        batch = MicroBatch(data, unit.groups, rows)
        segments += batch.segments(unit.reader.adapter, None)
        batches.append(batch)
        rows += batch.num_rows
    hidden_NH = model.hidden(model.new_pass(segments))
    for unit, batch in zip(units, batches, strict=True):
        for member, places in zip(batch.members, batch.rows, strict=True):
            found = torch.from_numpy(places).to(hidden_NH.device)
            unit.taught.keep(unit.members[member], hidden_NH[found])


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


@dataclass(eq=False)
class Lesson:
    """The part of x_distill_jsd that looks at whole rows."""

    config: JSDConfig
    taught: Taught
    weights: Tensor
    targets: Tensor
    sampled: Tensor | None
    """log p that the tokens were sampled with, [P]."""
    notes: Notes = field(init=False)

    def __post_init__(self) -> None:
        self.notes = Notes.empty(self.taught.size, self.weights.device)

    def __call__(
        self, logits_RV: Tensor, rows: Ints, pairs: Ints, logprobs: Tensor, into_RV: Tensor | None
    ) -> None:
        live = np.flatnonzero(self.taught.place[pairs] >= 0)
        for teacher in np.unique(self.taught.teacher[pairs[live]]):
            mine = live[self.taught.teacher[pairs[live]] == teacher]
            teacher_RV = self.taught.logits(int(teacher), self.taught.place[pairs[mine]])
            for start in range(0, mine.size, TOGETHER):
                some = mine[start : start + TOGETHER]
                theirs_RV = teacher_RV[start : start + TOGETHER]
                self._compare(
                    logits_RV, theirs_RV, rows[some], pairs[some], logprobs, some, into_RV
                )

    def _compare(
        self,
        logits_RV: Tensor,
        theirs_RV: Tensor,
        rows: Ints,
        pairs: Ints,
        logprobs: Tensor,
        some: Ints,
        into_RV: Tensor | None,
    ) -> None:
        device = logits_RV.device
        rows_R, pairs_R, some_R = (torch.from_numpy(one).to(device) for one in (rows, pairs, some))
        targets_R = self.targets[pairs_R]
        wanted = into_RV is not None
        measure = self.config.measure
        found = diverge(logits_RV[rows_R], theirs_RV, targets_R, measure, gradient=wanted)
        factor_R = self._factor(found, logprobs[some_R], pairs_R)
        self._note(found, factor_R, theirs_RV, pairs_R, targets_R)
        if into_RV is not None and found.gradient is not None:
            factor_R = self._open(found, factor_R)
            into_RV.index_add_(0, rows_R, found.gradient.mul_(factor_R[:, None]))

    def _factor(self, found: Found, logprobs_R: Tensor, pairs_R: Tensor) -> Tensor:
        """What each token's divergence weighs: its weight, and p/q up to is_clip (SDFT)."""
        factor_R = self.weights[pairs_R] * self.config.distill_weight
        if self.config.is_clip and self.sampled is not None:
            log_ratio_R = (logprobs_R - self.sampled[pairs_R]).clamp(-20, 20)
            factor_R = factor_R * log_ratio_R.exp().clamp(max=self.config.is_clip)
        return factor_R

    def _open(self, found: Found, factor_R: Tensor) -> Tensor:
        """0 where the divergence stands at its bound, which has no slope."""
        if not self.config.max_divergence:
            return factor_R
        return factor_R * (found.divergence < self.config.max_divergence)

    def _note(
        self, found: Found, factor_R: Tensor, theirs_RV: Tensor, pairs_R: Tensor, targets_R: Tensor
    ) -> None:
        notes, bounded_R = self.notes, found.divergence
        if self.config.max_divergence:
            bounded_R = bounded_R.clamp(max=self.config.max_divergence)
        taken_R1 = theirs_RV.gather(1, targets_R.clamp(max=theirs_RV.shape[1] - 1)[:, None])
        notes.divergence[pairs_R] = found.divergence
        notes.entropy[pairs_R] = found.entropy
        notes.teacher_entropy[pairs_R] = found.teacher_entropy
        notes.teacher_logprobs[pairs_R] = taken_R1[:, 0] - logsumexp(theirs_RV)
        notes.student_mass[pairs_R] = found.student_mass
        notes.teacher_mass[pairs_R] = found.teacher_mass
        notes.compared[pairs_R] = 1.0
        notes.loss[pairs_R] = bounded_R * factor_R

    def loss(self) -> Tensor:
        return self.notes.loss.sum()

    def metrics(self) -> dict[str, float]:
        notes = self.notes
        scored = float((self.weights != 0).sum())
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
