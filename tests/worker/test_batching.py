"""Micro-batches by their properties: every datum once, sizes respected, beginnings really shared."""

from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinsmith_worker.engine.batching import MIN_SHARED, Group, Tokens, cut, group_by_beginning

QUICK = settings(max_examples=200, deadline=None, derandomize=True)


def tokens(*numbers: int) -> Tokens:
    return np.array(numbers, np.int32)


@st.composite
def requests(draw: st.DrawFn) -> list[Tokens]:
    """Datums that often begin alike, sometimes are equal, sometimes contain one another."""
    pieces = [list(range(start, start + 12)) for start in (0, 0, 1 << 8, 1 << 16, 70_000)]
    datum = st.lists(st.sampled_from(pieces), min_size=1, max_size=6)
    tail = st.lists(st.integers(0, 2**31 - 1), max_size=3)
    return [
        np.array([*chain.from_iterable(draw(datum)), *draw(tail)], np.int32)
        for _ in range(draw(st.integers(1, 9)))
    ]


def check(groups: list[Group], data: list[Tokens]) -> None:
    assert sorted(index for group in groups for index in group.members) == list(range(len(data)))
    for group in groups:
        first = data[group.members[0]][: group.shared]
        assert group.shared == 0 or (len(group.members) > 1 and group.shared >= MIN_SHARED)
        for index in group.members:
            assert data[index].size > group.shared
            assert np.array_equal(data[index][: group.shared], first)


@QUICK
@given(requests())
def test_members_of_a_group_share_its_beginning_and_have_something_of_their_own(
    data: list[Tokens],
) -> None:
    groups = group_by_beginning(data)
    check(groups, data)
    sizes = [one.size for one in data]
    assert sum(group.num_tokens(sizes) for group in groups) <= sum(sizes)
    assert [group.members[0] for group in groups] == sorted(group.members[0] for group in groups)
    assert group_by_beginning(data, share=False) == [Group((n,)) for n in range(len(data))]


@QUICK
@given(requests(), st.integers(1, 120))
def test_micro_batches_cover_everything_once_and_keep_to_their_size(
    data: list[Tokens], limit: int
) -> None:
    sizes = [one.size for one in data]
    batches = cut(group_by_beginning(data), sizes, limit)
    check([group for batch in batches for group in batch], data)
    totals = [sum(group.num_tokens(sizes) for group in batch) for batch in batches]
    for batch, total in zip(batches, totals, strict=True):
        alone = len(batch) == 1 and len(batch[0].members) == 1
        assert total <= limit or alone
    for (_, following), total in zip(pairwise(batches), totals, strict=False):
        assert total + following[0].num_tokens(sizes) > limit  # else it would have joined


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        # The group of all: its beginning once, and the rest of each.
        ([[*range(40), n] for n in range(4)], [Group((0, 1, 2, 3), 40)]),
        # Equal datums keep their last token each.
        ([list(range(30))] * 3, [Group((0, 1, 2), 29)]),
        # One is a prefix of the other.
        ([list(range(30)), list(range(50))], [Group((0, 1), 29)]),
        ([list(range(50)), list(range(30))], [Group((0, 1), 29)]),
        # Too short to share.
        ([[*range(15), 1], [*range(15), 2]], [Group((0,)), Group((1,))]),
        ([[*range(16), 1], [*range(16), 2]], [Group((0, 1), 16)]),
        ([[1], [1], [1, 2]], [Group((0,)), Group((1,)), Group((2,))]),
        # A third that shares little does not cost the two that share much.
        (
            [[*range(200), 1], [*range(200), 2], [*range(20), 999]],
            [Group((0, 1), 200), Group((2,))],
        ),
        # Strangers between them do not matter.
        ([[*range(40), 1], [7] * 50, [*range(40), 2]], [Group((0, 2), 40), Group((1,))]),
    ],
)
def test_who_joins_whom(data: list[list[int]], expected: list[Group]) -> None:
    assert group_by_beginning([tokens(*one) for one in data]) == expected


def test_a_group_too_large_for_a_pass_computes_its_beginning_again() -> None:
    sizes = [45, 45, 45, 45, 45]
    whole = Group((0, 1, 2, 3, 4), 40)
    assert cut([whole], sizes, 50) == [[Group((0, 1), 40)], [Group((2, 3), 40)], [Group((4,))]]
    assert cut([whole], sizes, 49) == [[Group((n,))] for n in range(5)]
    assert cut([whole], sizes, 10) == [[Group((n,))] for n in range(5)]
