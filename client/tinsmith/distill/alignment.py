"""Where two tokenizations of one text end on the same character: the stretches that can be compared.

Works for any tokenizer that decodes, for it reads texts and not vocabularies.
"""

from collections.abc import Sequence
from typing import Any

Stretch = tuple[range, range]
"""Tokens of the student, tokens of the teacher: the same text."""
_BROKEN = "�"  # part of a character: no boundary is here


def stretches(
    student: Any, student_tokens: Sequence[int], teacher: Any, teacher_tokens: Sequence[int]
) -> list[Stretch]:
    """The shortest ones, in order. What follows the last common end is in none of them."""
    ours, theirs = _ends(student, student_tokens), _ends(teacher, teacher_tokens)
    found: list[Stretch] = []
    start = (0, 0)
    for text, end in ours.items():
        if text in theirs:
            there = theirs[text]
            found.append((range(start[0], end), range(start[1], there)))
            start = (end, there)
    return found


def _ends(tokenizer: Any, tokens: Sequence[int]) -> dict[int, int]:
    """For each length of text at which a token ends, how many tokens that is; the last such count.

    Tokens without a text of their own belong to what they follow.
    """
    found: dict[int, int] = {}
    whole = decode(tokenizer, tokens)
    for count in range(1, len(tokens) + 1):
        text = decode(tokenizer, tokens[:count])
        if text and not text.endswith(_BROKEN) and whole.startswith(text):
            found[len(text)] = count
    return found


def decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    text: str = tokenizer.decode(
        list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text
