"""Which tokens of two tokenizers spell the same bytes.

Both sides are cut where both have a token's end: the groups between are the smallest stretches of text
that each side spells with whole tokens of its own. Nothing is decoded to characters, which a token may
hold only a part of.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from tinsmith_worker.engine.values import InvalidInput


class Stretch(NamedTuple):
    """Half-open token ranges of the student and of the teacher."""

    s0: int
    s1: int
    t0: int
    t1: int


def common_groups(
    student_ends: Sequence[int], teacher_ends: Sequence[int], begin: int = 0
) -> list[Stretch]:
    """Token ranges between ends that both have, from byte `begin` on, where both begin a token."""
    cuts = sorted(set(student_ends) & set(teacher_ends))
    groups, s0, t0 = [], _past(student_ends, begin, 0), _past(teacher_ends, begin, 0)
    for cut in (cut for cut in cuts if cut > begin):
        s1, t1 = _past(student_ends, cut, s0), _past(teacher_ends, cut, t0)
        groups.append(Stretch(s0, s1, t0, t1))
        s0, t0 = s1, t1
    return groups


def _past(ends: Sequence[int], byte: int, index: int) -> int:
    """The first token from `index` that ends behind this byte."""
    while index < len(ends) and ends[index] <= byte:
        index += 1
    return index


def align(student: Sequence[bytes], teacher: Sequence[bytes], where: str) -> list[Stretch]:
    """The student's answer within the teacher's whole sequence, which must end in the same text.

    A teacher's token that begins before the answer is left out with what it covers. One space more or
    less at the answer's beginning is a tokenizer's habit and no difference. Raises InvalidInput.
    """
    answer, text = b"".join(student), b"".join(teacher)
    first = len(text) - len(answer)
    same = first >= 0 and text.endswith(answer)
    if not same and not (answer[:1] == b" " and text.endswith(answer[1:])):
        raise InvalidInput(
            f"{where}.loss_fn_inputs.teacher_tokens: their text does not end with the text of the "
            "scored targets; send the teacher's tokens of the same answer, or align."
        )
    student_ends = [first + end for end in accumulate(map(len, student))]
    teacher_ends = list(accumulate(map(len, teacher)))
    if not same:
        first += 1  # the teacher's text has no such space
    boundaries = {0, *teacher_ends}
    if first not in boundaries and text[first - 1 : first] == b" " and first - 1 in boundaries:
        teacher_ends = [first if end == first - 1 else end for end in teacher_ends]
        boundaries.add(first)
    if first not in boundaries:
        return _from_first_cut(student_ends, teacher_ends, first)
    return common_groups(student_ends, teacher_ends, first)


def _from_first_cut(
    student_ends: Sequence[int], teacher_ends: Sequence[int], first: int
) -> list[Stretch]:
    """Without the tokens before the first end, inside the answer, that both have."""
    cuts = [cut for cut in sorted(set(student_ends) & set(teacher_ends)) if cut > first]
    return common_groups(student_ends, teacher_ends, cuts[0]) if cuts else []
