"""Teachers' hidden states for a micro-batch, read in as few passes as the budget allows, whoever asks.

A teacher's pass comes before the student's and keeps nothing but the rows that are compared.

Legend: L rows wanted of teachers by one micro-batch, R of them looked at together, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.batching import Group, cut, group_by_beginning
from tinsmith_worker.engine.elementwise import logsumexp
from tinsmith_worker.engine.head import HEAD_ROWS
from tinsmith_worker.engine.micro_batch import MicroBatch
from tinsmith_worker.engine.packed import AdapterRows
from tinsmith_worker.engine.readings import Ints, Reading, Teacher
from tinsmith_worker.engine.values import Datum


class Taught:
    """What one micro-batch wants to know of its teachers: rows of every datum's reading, in order."""

    def __init__(self, readings: Sequence[Reading]) -> None:
        self._readings = readings
        self.starts = np.cumsum([0, *(reading.rows.size for reading in readings)])
        """Where each datum's rows begin among all."""
        self.teacher = np.repeat(
            [id(reading.teacher) for reading in readings], np.diff(self.starts)
        )
        """For each row the id of its teacher, [L]."""
        self._owners = {id(reading.teacher): reading.teacher for reading in readings}
        self._held: list[Tensor | None] = [None] * len(readings)
        self._joined: dict[int, Tensor] = {}
        self._place = np.zeros(self.teacher.size, np.int64)

    def units(self, max_tokens: int) -> list["Unit"]:
        """Its sequences by teacher, those that begin alike together."""
        made: list[Unit] = []
        for teacher in self._owners:
            members = [
                index
                for index, reading in enumerate(self._readings)
                if id(reading.teacher) == teacher and reading.rows.size
            ]
            tokens = [self._readings[index].tokens for index in members]
            if members:
                parts = cut(group_by_beginning(tokens), [one.size for one in tokens], max_tokens)
                made += [Unit(self, members, tokens, groups) for groups in parts]
        return made

    def keep(self, index: int, hidden_NH: Tensor, rows: Ints) -> None:
        """Of one datum's sequence, which stands in `rows` of a pass, those that are wanted."""
        wanted = rows[self._readings[index].rows]
        self._held[index] = hidden_NH[torch.from_numpy(wanted).to(hidden_NH.device)]

    def logits(self, teacher: int, lines: Ints) -> Tensor:
        """fp32 [R, V] of some of one teacher's rows, by their number among all."""
        owner, hidden = self._owners[teacher], self._hidden(teacher)
        rows = torch.from_numpy(self._place[lines]).to(hidden.device)
        adapters = []
        if owner.adapter is not None:
            adapters = [AdapterRows(slice(0, lines.size), owner.adapter)]
        return owner.model.logits(hidden[rows], adapters)

    def _hidden(self, teacher: int) -> Tensor:
        if teacher not in self._joined:
            mine = [
                (index, held)
                for index, held in enumerate(self._held)
                if held is not None and id(self._readings[index].teacher) == teacher
            ]
            first = 0
            for index, held in mine:
                lines = slice(self.starts[index], self.starts[index + 1])
                self._place[lines] = np.arange(first, first + held.shape[0])
                first += held.shape[0]
            self._joined[teacher] = torch.cat([held for _, held in mine])
        return self._joined[teacher]

    @torch.no_grad()
    def logprobs(self) -> Tensor:
        """log q of the token that follows each row, [L], at temperature 1."""
        targets = [reading.targets for reading in self._readings]
        targets_L = np.concatenate([*targets, np.zeros(0, np.int64)])
        found_L = torch.zeros(targets_L.size, device=self._device)
        for teacher in self._owners:
            mine = np.flatnonzero(self.teacher == teacher)
            for start in range(0, mine.size, HEAD_ROWS):
                lines = mine[start : start + HEAD_ROWS]
                logits_RV = self.logits(teacher, lines)
                tokens = torch.from_numpy(targets_L[lines]).to(logits_RV.device)
                picked = logits_RV.gather(1, tokens[:, None])[:, 0] - logsumexp(logits_RV)
                found_L[torch.from_numpy(lines).to(found_L.device)] = picked
        return found_L

    @property
    def _device(self) -> torch.device:
        return self._readings[0].teacher.model.device


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
    segments, batches, first = [], [], 0
    for unit in units:
        data = [Datum(tokens, {}) for tokens in unit.tokens]
        batch = MicroBatch(data, unit.groups, first)
        segments += batch.segments(unit.reader.adapter, None)
        batches.append(batch)
        first += batch.num_rows
    hidden_NH = model.hidden(model.new_pass(segments))
    for unit, batch in zip(units, batches, strict=True):
        for member, rows in zip(batch.members, batch.rows, strict=True):
            unit.taught.keep(unit.members[member], hidden_NH, rows)
