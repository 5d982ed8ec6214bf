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


def spelled_alike(
    student: Any, student_tokens: Sequence[int], teacher: Any, teacher_tokens: Sequence[int]
) -> list[Stretch]:
    """Those of the stretches that are text on both sides, byte for byte.

    A token without text, an end of text say, is left out, and so is a stretch with half a character:
    each tokenizer spells what is broken in a way of its own.
    """
    found = []
    for ours, theirs in stretches(student, student_tokens, teacher, teacher_tokens):
        text = decode(student, student_tokens[: ours.stop])
        text = text[len(decode(student, student_tokens[: ours.start])) :]
        pair = (
            _text_only(student, student_tokens, ours),
            _text_only(teacher, teacher_tokens, theirs),
        )
        if pair[0] and pair[1] and _BROKEN not in text:
            found.append(pair)
    return found


def plain_text(tokenizer: Any, tokens: Sequence[int]) -> bool:
    """Whether tokens are text and nothing else; one token without text may end them."""
    special = set(tokenizer.all_special_ids)
    inside = list(tokens[:-1] if tokens and tokens[-1] in special else tokens)
    return special.isdisjoint(inside) and _BROKEN not in decode(tokenizer, inside)


def _text_only(tokenizer: Any, tokens: Sequence[int], some: range) -> range:
    """Without the tokens at its ends that have no text; nothing if one stands within."""
    special = set(tokenizer.all_special_ids)
    start, stop = some.start, some.stop
    while start < stop and tokens[start] in special:
        start += 1
    while start < stop and tokens[stop - 1] in special:
        stop -= 1
    return range(start, stop) if special.isdisjoint(tokens[start:stop]) else range(0)


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
