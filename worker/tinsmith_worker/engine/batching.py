"""Which tokens a request has to compute, and in which micro-batches. Has never heard of torch.

Datums that begin alike share that beginning: it is computed once. A request is cut by its own size
alone, so what it computes does not depend on its company.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MIN_SHARED = 16
"""Beginnings shorter than this are not worth a sequence of their own."""

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Group:
    """Datums by index, and how many first tokens all of them share (0 for a datum alone)."""

    members: tuple[int, ...]
    shared: int = 0

    def num_tokens(self, sizes: Sequence[int]) -> int:
        return self.shared + sum(sizes[index] - self.shared for index in self.members)


def group_by_beginning(tokens: Sequence[Tokens], *, share: bool = True) -> list[Group]:
    """Groups in the order of their first datum.

    Neighbours in sorted order join while that saves more than starting anew; every member keeps at
    least one token of its own.
    """
    if not share or len(tokens) == 1:
        return [Group((index,)) for index in range(len(tokens))]
    order = sorted(range(len(tokens)), key=lambda index: tokens[index].astype(">i4").tobytes())
    groups: list[Group] = []
    for index in order:
        last = groups[-1] if groups else None
        joined = last and _join(last, index, tokens)
        if joined:
            groups[-1] = joined
        else:
            groups.append(Group((index,)))
    made = [Group(tuple(sorted(group.members)), group.shared) for group in groups]
    return sorted(made, key=lambda group: group.members[0])


def _join(group: Group, index: int, tokens: Sequence[Tokens]) -> Group | None:
    """The larger group, if it saves no less than the smaller one does."""
    shared = _common(tokens[group.members[-1]], tokens[index])
    if len(group.members) > 1:
        shared = min(shared, group.shared)
    saved_before = (len(group.members) - 1) * group.shared
    if shared < MIN_SHARED or len(group.members) * shared < saved_before:
        return None
    return Group((*group.members, index), shared)


def _common(one: Tokens, other: Tokens) -> int:
    """How many first tokens are equal, leaving each at least one more."""
    length = min(one.size, other.size) - 1
    differing = np.flatnonzero(one[:length] != other[:length])
    return int(differing[0]) if differing.size else length


def cut(groups: Sequence[Group], sizes: Sequence[int], max_tokens: int) -> list[list[Group]]:
    """Micro-batches of at most `max_tokens`, but for a datum that is longer by itself."""
    batches: list[list[Group]] = []
    size = max_tokens + 1
    for group in groups:
        for part in _split(group, sizes, max_tokens):
            size += part.num_tokens(sizes)
            if size > max_tokens:
                batches.append([])
                size = part.num_tokens(sizes)
            batches[-1].append(part)
    return batches


def _split(group: Group, sizes: Sequence[int], max_tokens: int) -> list[Group]:
    """A group too large for one micro-batch, as several that each compute the beginning again."""
    parts: list[Group] = []
    for index in group.members:
        last = parts[-1] if parts else None
        grown = last and Group((*last.members, index), group.shared)
        if grown and grown.num_tokens(sizes) <= max_tokens:
            parts[-1] = grown
        else:
            parts.append(Group((index,), group.shared))
    return [part if len(part.members) > 1 else Group(part.members) for part in parts]
