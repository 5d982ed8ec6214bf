"""Blocks of keys and values that outlive their sequence, found again by the tokens they hold.

A tree of blocks for each adapter: whoever sends a prompt that begins like an earlier prompt or
conversation under the same weights reads the rest only. Least used blocks leave first.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from weakref import WeakSet

from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.kv_pool import BLOCK, KVCache, KVPool, PoolFull

Owner = Adapter | None
MIN_COPIED = 16
"""Fewer tokens than this of a block are read again rather than copied."""


@dataclass(eq=False)
class _Node:
    tokens: tuple[int, ...]
    block: int
    parent: "_Node | None"
    used: int = 0
    children: dict[int, list["_Node"]] = field(default_factory=lambda: defaultdict(list))
    """By first token."""


class PrefixCache:
    def __init__(self, pool: KVPool) -> None:
        self._pool = pool
        self._roots: dict[Owner, _Node] = {}
        self._nodes: set[_Node] = set()
        self._forgotten: WeakSet[Adapter] = WeakSet()
        self._clock = 0

    def find(self, owner: Owner, tokens: list[int], limit: int) -> KVCache:
        """A cache that holds as many of the first `limit` tokens as are known; maybe none."""
        node: _Node | None = self._roots.get(owner)
        blocks: list[int] = []
        length = 0
        self._clock += 1
        while node is not None and length < limit:
            child, common = _best(node, tokens[length : min(length + BLOCK, limit)])
            node = None
            if child is None or (common < BLOCK and common < MIN_COPIED):
                break
            child.used = self._clock
            if common < BLOCK:
                copied = self._copy(child)
                if copied is None:
                    break
                blocks.append(copied)
            else:
                blocks.append(self._pool.share(child.block))
                node = child
            length += common
        return KVCache(self._pool, blocks, length)

    def _copy(self, node: _Node) -> int | None:
        try:
            return self._pool.copy(node.block)
        except PoolFull:
            return None

    def remember(self, owner: Owner, tokens: list[int], cache: KVCache) -> None:
        """Keep what `cache` holds of these tokens, but for a tail that `find` would never copy."""
        if owner in self._forgotten:  # its last samples end after it has left
            return
        self._clock += 1
        node = self._roots.setdefault(owner, _Node((), -1, None))
        for start, block in zip(range(0, cache.length, BLOCK), cache.blocks, strict=False):
            part = tuple(tokens[start : min(start + BLOCK, cache.length)])
            if len(part) < MIN_COPIED:
                break
            found, common = _best(node, part)
            if found is None or common < min(len(part), len(found.tokens)):
                found = self._add(node, part, block)
            elif len(part) > len(found.tokens):  # the same beginning, further filled
                self._pool.share(block)
                self._pool.give_back(found.block)
                found.tokens, found.block = part, block
            found.used = self._clock
            node = found

    def _add(self, parent: _Node, tokens: tuple[int, ...], block: int) -> _Node:
        node = _Node(tokens, self._pool.share(block), parent)
        parent.children[tokens[0]].append(node)
        self._nodes.add(node)
        return node

    @property
    def num_reclaimable(self) -> int:
        """How many blocks would be free if all of them were forgotten."""
        return sum(not self._pool.is_shared(node.block) for node in self._nodes)

    def forget_least_used(self) -> bool:
        """Let one block go; False when there is none. Those that nobody else uses go first."""
        leaf = min(
            (node for node in self._nodes if not any(node.children.values())),
            key=lambda node: (self._pool.is_shared(node.block), node.used),
            default=None,
        )
        if leaf is None:
            return False
        self._remove(leaf)
        return True

    def forget(self, owner: Owner) -> None:
        """All of an adapter's blocks: nobody will ask under these weights again."""
        if owner is not None:
            self._forgotten.add(owner)
        root = self._roots.pop(owner, None)
        for node in list(_below(root)) if root else []:
            self._nodes.discard(node)
            self._pool.give_back(node.block)

    def _remove(self, node: _Node) -> None:
        assert node.parent is not None
        node.parent.children[node.tokens[0]].remove(node)
        self._nodes.discard(node)
        self._pool.give_back(node.block)


def _below(node: _Node) -> Iterator[_Node]:
    for some in node.children.values():
        for child in some:
            yield child
            yield from _below(child)


def _best(node: _Node, tokens: "list[int] | tuple[int, ...]") -> tuple[_Node | None, int]:
    """The child with the longest common beginning, and its length."""
    best: tuple[_Node | None, int] = (None, 0)
    if not tokens:
        return best
    for child in node.children.get(tokens[0], ()):
        common = _common(child.tokens, tokens)
        if common > best[1]:
            best = (child, common)
    return best


def _common(one: "tuple[int, ...]", other: "list[int] | tuple[int, ...]") -> int:
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))
