"""How a teacher reads a datum: which tokens it is given, and which of its rows predicts which target.

Its tokens may be others than the student's: a prompt of its own, a demonstration that the student does
not see. What must be the same are the tokens that are scored.

Legend: N targets of a datum, M tokens of the teacher's sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.values import Datum, InvalidInput

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen model, with an adapter or without."""

    name: str
    model: BaseModel
    adapter: Adapter | None = None


@dataclass(frozen=True, eq=False)
class Reading:
    teacher: Teacher
    tokens: npt.NDArray[np.int32]
    """What it is given: all of its sequence but the last token."""
    rows: Ints
    """For each target the row that predicts it, -1 where none does."""


def teacher_of(datum: Datum, where: str, teachers: Sequence[Teacher]) -> Teacher:
    if "teacher_index" not in datum.inputs:
        if len(teachers) > 1:
            raise InvalidInput(
                f"{where}.loss_fn_inputs: there are {len(teachers)} teachers; say with teacher_index "
                "which one it is."
            )
        return teachers[0]
    index: npt.NDArray[Any] = datum.inputs["teacher_index"]
    if index.shape != (1,) or not np.issubdtype(index.dtype, np.integer):
        raise InvalidInput(f"{where}.loss_fn_inputs.teacher_index: it must be int64 of shape [1].")
    if not 0 <= index[0] < len(teachers):
        raise InvalidInput(
            f"{where}.loss_fn_inputs.teacher_index: {int(index[0])} is not from 0 to {len(teachers) - 1}."
        )
    return teachers[int(index[0])]


def same_tokens(datum: Datum, where: str, teacher: Teacher) -> Reading:
    """Of a teacher with the student's tokenizer. Raises InvalidInput where a scored token differs."""
    targets = datum.inputs["target_tokens"].astype(np.int64)
    scored = datum.inputs["weights"] != 0
    sequence = sequence_of(datum, where, teacher)
    if "teacher_tokens" not in datum.inputs:
        return Reading(teacher, sequence[:-1].astype(np.int32), np.arange(targets.size))
    places = _places(datum, where, sequence.size)
    there = places >= 0
    _check_places(places, scored & there, sequence, targets, where)
    rows = np.where(there & (places >= 1), places - 1, -1)
    return Reading(teacher, sequence[:-1].astype(np.int32), rows)


def sequence_of(datum: Datum, where: str, teacher: Teacher) -> Ints:
    """The teacher's whole sequence [M], its own or the student's."""
    field = f"{where}.loss_fn_inputs.teacher_tokens"
    if "teacher_tokens" in datum.inputs:
        found = datum.inputs["teacher_tokens"]
        if found.ndim != 1 or found.size < 2 or not np.issubdtype(found.dtype, np.integer):
            raise InvalidInput(f"{field}: it must be int64 of shape [M] with at least 2 tokens.")
    else:
        field = f"{where}.loss_fn_inputs.target_tokens"
        found = np.append(datum.tokens, datum.inputs["target_tokens"][-1:])
    return _checked(found.astype(np.int64), field, teacher)


def _checked(found: Ints, field: str, teacher: Teacher) -> Ints:
    model = teacher.model
    if found.size - 1 > model.max_context_length:
        raise InvalidInput(
            f"{field}: {found.size - 1} tokens are more than the context of {teacher.name}, "
            f"{model.max_context_length}."
        )
    bad = found[(found < 0) | (found >= model.vocab_size)]
    if bad.size:
        raise InvalidInput(
            f"{field}: token id {int(bad[0])} is outside the vocabulary of {teacher.name} "
            f"(0 to {model.vocab_size - 1})."
        )
    return found


def _places(datum: Datum, where: str, length: int) -> Ints:
    """For each target its index in the teacher's sequence; without teacher_pos both end alike."""
    count = datum.tokens.size
    if "teacher_pos" not in datum.inputs:
        return np.arange(length - count, length)
    field = f"{where}.loss_fn_inputs.teacher_pos"
    places: npt.NDArray[Any] = datum.inputs["teacher_pos"]
    if places.shape != (count,) or not np.issubdtype(places.dtype, np.integer):
        raise InvalidInput(f"{field}: it must be int64 of shape [{count}], one for each target.")
    if ((places < -1) | (places >= length)).any():
        raise InvalidInput(f"{field}: it must be from 0 to {length - 1}, or -1 for none.")
    return places.astype(np.int64)


def _check_places(
    places: Ints, wanted: npt.NDArray[np.bool_], sequence: Ints, targets: Ints, where: str
) -> None:
    if (places[wanted] == 0).any():
        raise InvalidInput(
            f"{where}.loss_fn_inputs.teacher_tokens: a scored token stands first, where nothing "
            "predicts it; begin the teacher's sequence earlier."
        )
    wrong = np.flatnonzero(wanted)[sequence[places[wanted]] != targets[wanted]]
    if wrong.size:
        n = int(wrong[0])
        raise InvalidInput(
            f"{where}.loss_fn_inputs.teacher_tokens: target {n} is token {int(targets[n])}, and the "
            f"teacher has {int(sequence[places[n]])} there. Both sequences must end in the same "
            "tokens, or teacher_pos say where each one is."
        )
