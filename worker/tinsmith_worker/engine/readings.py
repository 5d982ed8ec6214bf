"""How a teacher reads a datum: which tokens it is given, and which of its rows predicts which target.

Its tokens may be others than the student's: a prompt of its own, a demonstration that the student does
not see. What must be the same are the tokens that are scored.

Legend: N targets of a datum, M tokens of the teacher's sequence, L rows wanted of it, G groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.alignment import Stretch, align
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
    """What it is given."""
    rows: Ints
    """The rows of it that are compared, [L]."""
    targets: Ints
    """The token that follows each of them, [L]."""
    line: Ints
    """For each of the student's targets which of these rows predicts it, -1 for none, [N]."""
    groups: tuple["Group", ...] = ()
    """Where the tokenizers differ: tokens of both sides that spell the same bytes."""


@dataclass(frozen=True)
class Group:
    """The student's targets [s0, s1) and the teacher's rows [l0, l1) of one stretch of text."""

    s0: int
    s1: int
    l0: int
    l1: int


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How text that two tokenizers spell is brought together."""

    skip_student_eos: bool = True
    skip_teacher_eos: bool = True
    later: bool = False
    """Whether a token's row is the one behind it."""
    positional: bool = False


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
    places = np.arange(1, targets.size + 1)
    if "teacher_tokens" in datum.inputs:
        places = _places(datum, where, sequence.size)
        _check_places(places, scored & (places >= 0), sequence, targets, where)
    wanted = np.flatnonzero(scored & (places >= 0))
    line = np.full(targets.size, -1)
    line[wanted] = np.arange(wanted.size)
    rows = places[wanted] - 1
    return Reading(teacher, sequence[:-1].astype(np.int32), rows, targets[wanted], line)


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
    if found.size - 1 > model.max_context_length:  # the last is only predicted
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


def other_tokens(
    datum: Datum, where: str, teacher: Teacher, student: BaseModel, rules: Rules
) -> Reading:
    """Of a teacher with a tokenizer of its own. Raises InvalidInput where the texts differ."""
    if "teacher_tokens" not in datum.inputs:
        raise InvalidInput(
            f"{where}.loss_fn_inputs: {teacher.name} has another tokenizer; send teacher_tokens, the "
            "same answer as its tokenizer spells it."
        )
    sequence = sequence_of(datum, where, teacher)
    found = _stretches(datum, where, sequence, teacher, student, rules)
    if rules.positional:
        found = _one_by_one(found)
    scored = datum.inputs["weights"] != 0
    usable = [one for one in found if scored[one.s0 : one.s1].any() and (rules.later or one.t0 > 0)]
    return _grouped(datum, where, sequence, teacher, usable, rules)


def _grouped(
    datum: Datum,
    where: str,
    sequence: Ints,
    teacher: Teacher,
    stretches: Sequence[Stretch],
    rules: Rules,
) -> Reading:
    count = datum.tokens.size
    if rules.later and stretches and stretches[-1].s1 >= count:
        raise InvalidInput(
            f"{where}.loss_fn_inputs.weights: merge observed reads the row behind a token; let one more "
            "token of weight 0 follow the last that is scored."
        )
    rows, targets, groups, line = [], [], [], 0
    for one in stretches:
        tokens = np.arange(one.t0, one.t1)
        rows.append(tokens if rules.later else tokens - 1)
        targets.append(sequence[tokens])
        groups.append(Group(one.s0, one.s1, line, line + tokens.size))
        line += tokens.size
    nothing = np.zeros(0, np.int64)
    return Reading(
        teacher,
        (sequence if rules.later else sequence[:-1]).astype(np.int32),
        np.concatenate([nothing, *rows]),
        np.concatenate([nothing, *targets]),
        np.full(count, -1),
        tuple(groups),
    )


def _stretches(
    datum: Datum, where: str, sequence: Ints, teacher: Teacher, student: BaseModel, rules: Rules
) -> list[Stretch]:
    """The caller's `align`, or what the bytes of both sides say."""
    targets = datum.inputs["target_tokens"].astype(np.int64)
    ours, theirs = student.token_bytes, teacher.model.token_bytes
    if "align" in datum.inputs:
        found = _given(datum, where, sequence.size)
        if ours is not None and theirs is not None:
            _check_bytes(found, _spelled(ours, targets), _spelled(theirs, sequence), where)
        return found
    if ours is None or theirs is None:
        raise InvalidInput(
            f"{where}.loss_fn_inputs: a tokenizer does not say which bytes its tokens spell; send align."
        )
    scored = np.flatnonzero(datum.inputs["weights"])
    if not scored.size:
        return []
    first, last, end = int(scored[0]), int(scored[-1]) + 1, sequence.size
    ended = int(targets[last - 1]) in student.eos_token_ids
    they_ended = int(sequence[-1]) in teacher.model.eos_token_ids
    last, end = last - ended, end - they_ended  # each spells its end of text in a way of its own
    found = align(_spelled(ours, targets[first:last]), _spelled(theirs, sequence[:end]), where)
    made = [Stretch(one.s0 + first, one.s1 + first, one.t0, one.t1) for one in found]
    if ended and they_ended and not (rules.skip_student_eos or rules.skip_teacher_eos):
        made.append(Stretch(last, last + 1, end, end + 1))
    return made


def _spelled(table: Sequence[bytes], tokens: Ints) -> list[bytes]:
    return [table[token] if token < len(table) else b"" for token in tokens]


def _given(datum: Datum, where: str, length: int) -> list[Stretch]:
    field = f"{where}.loss_fn_inputs.align"
    ranges: npt.NDArray[Any] = datum.inputs["align"]
    if ranges.ndim != 2 or ranges.shape[1] != 4 or not np.issubdtype(ranges.dtype, np.integer):
        raise InvalidInput(f"{field}: it must be int64 of shape [G, 4]: s0, s1, t0, t1.")
    for first, last, size in ((0, 1, datum.tokens.size), (2, 3, length)):
        begins, ends = ranges[:, first], ranges[:, last]
        if (begins < 0).any() or (ends > size).any() or (begins >= ends).any():
            raise InvalidInput(f"{field}: a range is empty or not within 0 to {size}.")
        if (begins[1:] < ends[:-1]).any():
            raise InvalidInput(f"{field}: ranges must ascend and not overlap.")
    return [Stretch(*map(int, one)) for one in ranges]


def _check_bytes(
    found: Sequence[Stretch], ours: Sequence[bytes], theirs: Sequence[bytes], where: str
) -> None:
    for number, one in enumerate(found):
        if b"".join(ours[one.s0 : one.s1]) != b"".join(theirs[one.t0 : one.t1]):
            raise InvalidInput(
                f"{where}.loss_fn_inputs.align: the two sides of range {number} spell different bytes."
            )


def _one_by_one(found: Sequence[Stretch]) -> list[Stretch]:
    """First with first and so on, up to the shorter side's end, whatever they spell."""
    if not found:
        return []
    s0, t0 = found[0].s0, found[0].t0
    count = min(found[-1].s1 - s0, found[-1].t1 - t0)
    return [Stretch(s0 + k, s0 + k + 1, t0 + k, t0 + k + 1) for k in range(count)]
