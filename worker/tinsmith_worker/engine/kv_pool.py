"""Keys and values of many sequences, in blocks that sequences with the same beginning share.

A full block never changes again, so a fork shares it; the last, growing one is copied. A block is
zeroed when it is handed out: a stale nan of its former user would pass through a probability of 0.

Legend: G key/value heads, C positions of a block, D head size.
"""

from collections.abc import Sequence

from torch import Tensor

BLOCK = 128


class PoolFull(Exception):
    """Every block is in use."""


class KVPool:
    """Grows by doubling up to `max_blocks`; what a released sequence held is used again."""

    def __init__(self, max_blocks: int) -> None:
        self.max_blocks = max_blocks
        self._layers: dict[int, Tensor] = {}
        self._users: list[int] = []
        self._free: list[int] = []

    def cache(self) -> "KVCache":
        return KVCache(self)

    @property
    def blocks_in_use(self) -> int:
        return len(self._users) - len(self._free)

    @property
    def blocks_left(self) -> int:
        return self.max_blocks - self.blocks_in_use

    def layer(self, layer: int, key_NGD: Tensor) -> Tensor:
        """Keys and values [2, blocks, G, C, D] of one layer, made like `key` when they are missing."""
        held = self._layers.get(layer)
        if held is None or held.shape[1] < len(self._users):
            _, groups, size = key_NGD.shape
            grown = key_NGD.new_zeros(2, len(self._users), groups, BLOCK, size)
            if held is not None:
                grown[:, : held.shape[1]] = held
            self._layers[layer] = held = grown
        return held

    def take(self) -> int:
        if not self._free:
            count = len(self._users)
            more = min(max(8, count), self.max_blocks - count)
            if more <= 0:
                raise PoolFull
            self._users += [0] * more
            self._free = list(range(count + more - 1, count - 1, -1))
        block = self._free.pop()
        self._users[block] = 1
        for held in self._layers.values():
            if block < held.shape[1]:
                held[:, block] = 0
        return block

    def is_shared(self, block: int) -> bool:
        return self._users[block] > 1

    def share(self, block: int) -> int:
        self._users[block] += 1
        return block

    def copy(self, block: int) -> int:
        twin = self.take()
        for layer, held in self._layers.items():
            if twin >= held.shape[1]:
                held = self.layer(layer, held[0, 0].transpose(0, 1))
            held[:, twin] = held[:, block]
        return twin

    def give_back(self, block: int) -> None:
        self._users[block] -= 1
        if not self._users[block]:
            self._free.append(block)


class KVCache:
    """One sequence's place in the pool: its blocks in order and how many positions are filled."""

    def __init__(self, pool: KVPool, blocks: Sequence[int] = (), length: int = 0) -> None:
        self.pool, self.blocks, self.length = pool, list(blocks), length

    def blocks_wanted(self, count: int) -> int:
        """How many more blocks the next `count` positions take."""
        return max(0, -(-(self.length + count) // BLOCK) - len(self.blocks))

    def make_room(self, count: int) -> None:
        for _ in range(self.blocks_wanted(count)):
            self.blocks.append(self.pool.take())

    def slots(self, count: int) -> tuple[list[int], list[int]]:
        """Block and offset of each of the next positions."""
        positions = range(self.length, self.length + count)
        return [self.blocks[at // BLOCK] for at in positions], [at % BLOCK for at in positions]

    def fork(self) -> "KVCache":
        """Another sequence that begins with all of this one's positions."""
        full, rest = divmod(self.length, BLOCK)
        twin = KVCache(self.pool, [], self.length)
        if rest:
            twin.blocks = [self.pool.copy(self.blocks[full])]
        twin.blocks = [self.pool.share(block) for block in self.blocks[:full]] + twin.blocks
        return twin

    def release(self) -> None:
        for block in self.blocks:
            self.pool.give_back(block)
        self.blocks, self.length = [], 0
