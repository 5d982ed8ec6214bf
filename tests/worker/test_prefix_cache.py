"""The tree of remembered blocks, without a model: what is found, what is shared, what leaves."""

from collections import Counter

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.kv_pool import BLOCK, KVCache, KVPool
from tinsmith_worker.engine.prefix_cache import MIN_COPIED, Owner, PrefixCache


def write(cache: KVCache, tokens: list[int]) -> None:
    """As a pass would: position i's key is token i, in the one layer that there is."""
    cache.make_room(len(tokens))
    key = torch.tensor(tokens, dtype=torch.float32)[:, None, None]
    if not tokens:
        return
    held = cache.pool.layer(0, key)
    blocks, offsets = cache.slots(len(tokens))
    held[0, blocks, :, offsets] = key
    cache.length += len(tokens)


def read(cache: KVCache) -> list[int]:
    if not cache.length:
        return []
    held = cache.pool.layer(0, torch.zeros(1, 1, 1))
    places = [(cache.blocks[at // BLOCK], at % BLOCK) for at in range(cache.length)]
    return [int(held[0, block, 0, offset, 0]) for block, offset in places]


def conversation(seed: int, length: int) -> list[int]:
    return [(seed * 31 + at * 7) % 1000 + 1 for at in range(length)]


def keep(prefixes: PrefixCache, pool: KVPool, tokens: list[int], owner: Owner = None) -> None:
    cache = pool.cache()
    write(cache, tokens)
    prefixes.remember(owner, tokens, cache)
    cache.release()


@pytest.fixture
def pool() -> KVPool:
    return KVPool(16)


@pytest.fixture
def prefixes(pool: KVPool) -> PrefixCache:
    return PrefixCache(pool)


@pytest.mark.parametrize(
    ("asked", "limit", "found"),
    [
        (300, 300, 300),
        (300, 299, 299),
        (400, 400, 300),
        (300, BLOCK, BLOCK),
        (300, MIN_COPIED, MIN_COPIED),
        (300, MIN_COPIED - 1, 0),
        (300, BLOCK + MIN_COPIED - 1, BLOCK),
        (300, 0, 0),
    ],
)
def test_as_much_is_found_as_is_known_and_allowed(
    pool: KVPool, prefixes: PrefixCache, asked: int, limit: int, found: int
) -> None:
    keep(prefixes, pool, conversation(1, 300))
    cache = prefixes.find(None, conversation(1, asked), limit)
    assert cache.length == found
    assert read(cache) == conversation(1, found)
    cache.release()
    assert pool.blocks_in_use == 3


def test_a_full_block_is_shared_and_a_part_of_one_is_copied(
    pool: KVPool, prefixes: PrefixCache
) -> None:
    keep(prefixes, pool, conversation(1, 300))
    cache = prefixes.find(None, conversation(1, 300), 299)
    assert pool.blocks_in_use == 4
    write(cache, [-1] * 60)
    assert read(prefixes.find(None, conversation(1, 300), 300)) == conversation(1, 300)


def test_the_copy_of_a_block_reaches_layers_that_have_not_grown_to_it(pool: KVPool) -> None:
    cache = pool.cache()
    write(cache, conversation(1, 7 * BLOCK + 50))  # all eight blocks of the first growth
    twin = cache.fork()
    write(twin, [5])
    assert read(twin) == [*conversation(1, 7 * BLOCK + 50), 5]
    assert read(cache) == conversation(1, 7 * BLOCK + 50)


def test_a_block_is_handed_out_empty(pool: KVPool) -> None:
    cache = pool.cache()
    write(cache, conversation(1, 8 * BLOCK))
    pool.layer(0, torch.zeros(1, 1, 1)).fill_(float("nan"))
    cache.release()
    other = pool.cache()
    write(other, [3])
    held = pool.layer(0, torch.zeros(1, 1, 1))
    assert torch.isfinite(held[:, other.blocks[0]]).all()


def test_least_used_leave_first_and_never_from_the_middle(
    pool: KVPool, prefixes: PrefixCache
) -> None:
    keep(prefixes, pool, conversation(1, 2 * BLOCK))
    keep(prefixes, pool, conversation(2, BLOCK))
    prefixes.find(None, conversation(1, 2 * BLOCK), 2 * BLOCK).release()
    assert prefixes.forget_least_used()
    assert prefixes.find(None, conversation(2, BLOCK), BLOCK).length == 0
    assert prefixes.forget_least_used()
    rest = prefixes.find(None, conversation(1, 2 * BLOCK), 2 * BLOCK)
    assert rest.length == BLOCK
    rest.release()
    assert prefixes.forget_least_used()
    assert not prefixes.forget_least_used()
    assert pool.blocks_in_use == 0


def test_what_somebody_is_reading_leaves_last(pool: KVPool, prefixes: PrefixCache) -> None:
    """Forgetting it would free nothing."""
    keep(prefixes, pool, conversation(1, BLOCK))
    reading = prefixes.find(None, conversation(1, BLOCK), BLOCK)
    keep(prefixes, pool, conversation(2, BLOCK))
    assert prefixes.forget_least_used()
    assert prefixes.find(None, conversation(2, BLOCK), BLOCK).length == 0
    assert read(reading) == conversation(1, BLOCK)


def test_a_full_pool_costs_the_copy_and_not_the_request(
    prefixes: PrefixCache, pool: KVPool
) -> None:
    keep(prefixes, pool, conversation(1, BLOCK + 50))
    hog = pool.cache()
    write(hog, [1] * (pool.blocks_left * BLOCK))
    cache = prefixes.find(None, conversation(1, BLOCK + 50), BLOCK + 50)
    assert cache.length == BLOCK
    assert read(cache) == conversation(1, BLOCK)


class Memory(RuleBasedStateMachine):
    """Any order of reading, growing, remembering and forgetting: what is found is what was written."""

    OWNERS = (None, object(), object())

    def __init__(self) -> None:
        super().__init__()
        self.pool = KVPool(10)
        self.prefixes = PrefixCache(self.pool)
        self.open: list[tuple[object, list[int], KVCache]] = []

    def _tokens(self, seeds: list[int]) -> list[int]:
        """Pieces of 50 tokens, so that beginnings coincide and blocks end in the middle of one."""
        return [seed * 100 + at for seed in seeds for at in range(1, 51)]

    @rule(owner=st.sampled_from(OWNERS), seeds=st.lists(st.integers(0, 2), min_size=1, max_size=8))
    def begin(self, owner: "Adapter | None", seeds: list[int]) -> None:
        tokens = self._tokens(seeds)
        cache = self.prefixes.find(owner, tokens, len(tokens) - 1)
        assert cache.length < len(tokens)
        rest = tokens[cache.length :]
        while self.pool.blocks_left < cache.blocks_wanted(len(rest)):
            if not self.prefixes.forget_least_used():
                cache.release()
                return
        write(cache, rest)
        self.open.append((owner, tokens, cache))

    @rule(seeds=st.lists(st.integers(0, 2), min_size=1, max_size=2))
    def grow(self, seeds: list[int]) -> None:
        if not self.open:
            return
        owner, tokens, cache = self.open.pop(0)
        more = self._tokens(seeds)
        if self.pool.blocks_left >= cache.blocks_wanted(len(more)):
            write(cache, more)
            tokens = tokens + more
        self.open.append((owner, tokens, cache))

    @rule()
    def fork(self) -> None:
        if self.open and self.pool.blocks_left:
            owner, tokens, cache = self.open[0]
            self.open.append((owner, tokens, cache.fork()))

    @rule()
    def remember(self) -> None:
        if self.open:
            owner, tokens, cache = self.open[-1]
            self.prefixes.remember(owner, tokens, cache)  # type: ignore[arg-type]

    @rule()
    def end(self) -> None:
        if self.open:
            self.open.pop(0)[2].release()

    @rule()
    def forget_one(self) -> None:
        self.prefixes.forget_least_used()

    @invariant()
    def everybody_reads_what_he_wrote(self) -> None:
        for _, tokens, cache in self.open:
            assert read(cache) == tokens

    @invariant()
    def every_block_is_counted(self) -> None:
        users = Counter(block for _, _, cache in self.open for block in cache.blocks)
        users.update(node.block for node in self.prefixes._nodes)
        counted = {block: count for block, count in enumerate(self.pool._users) if count}
        assert counted == dict(users)
        assert self.pool.blocks_in_use == len(users)
        remembered = {node.block for node in self.prefixes._nodes}
        mine = {block for _, _, cache in self.open for block in cache.blocks}
        assert self.prefixes.num_reclaimable == len(remembered - mine)


Memory.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, derandomize=True
)
test_memory = Memory.TestCase
