"""Who attends to what: a pass laid out in buckets of like lengths, once for all layers.

A bucket's sequences are padded to one shape; where each row's query and key stand, and who continues
a shared prompt, is worked out here. Knows nothing of softmax.

Legend: B sequences of a bucket, T query positions, S key positions (a multiple of BLOCK), G key/value
heads, D head size, C = BLOCK.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tinsmith_worker.engine.kv_pool import BLOCK
from tinsmith_worker.engine.packed import Pass, Segment

_QUERY_GRID = 16  # lengths are rounded up to it, so that like lengths share a bucket
_QUERY_STEP = 128  # queries that share one set of keys


@dataclass
class Bucket:
    """Sequences of one padded shape. A padded query or key repeats the sequence's own first row."""

    query_rows: Tensor  # [B, T]
    query_positions: Tensor  # [B, T]
    key_rows: Tensor | None  # [B, S] rows of the pass, or
    key_blocks: Tensor | None  # [B, S / C] blocks of the pool
    padded: Tensor | None  # [B * T], true where a query is nobody's
    key_count: int
    first: int
    last: int
    biases: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict)

    def steps(self, window: int | None) -> Iterator[tuple[slice, int, int]]:
        """Queries, how many keys they may see, and the first key that some of them may not."""
        count = self.query_rows.shape[1]
        for start in range(0, count, _QUERY_STEP):
            end = min(start + _QUERY_STEP, count)
            keys = min(self.key_count, _round_up(self.last + end, BLOCK))
            free = 0 if window is not None and keys > window else self.first + start + 1
            yield slice(start, end), keys, min(free, keys)

    def bias(self, queries: slice, keys: slice, window: int | None, dtype: torch.dtype) -> Tensor:
        """0 where a query may look and -inf where it may not, [B or 1, 1, T, 1, S]."""
        name = (queries.start, keys.stop, window)
        if name not in self.biases:
            # A padded query may stand beyond the last key; it must still see one, or be nan.
            query = self.query_positions[:, queries].clamp(max=self.key_count - 1)
            if self.first == self.last:
                query = query[:1]
            key = torch.arange(keys.start, keys.stop, device=query.device)
            hidden = key > query[..., None]
            if window is not None:
                hidden |= key <= query[..., None] - window
            zeros = torch.zeros(hidden.shape, dtype=dtype, device=query.device)
            made = zeros.masked_fill_(hidden, -math.inf)
            self.biases[name] = made[:, None, :, None, :]
        return self.biases[name]


class Plan:
    """Who attends to what, worked out once for all layers of a pass."""

    def __init__(self, current: Pass) -> None:
        self.device: torch.device | None = None
        self._current = current
        spare = len(current.tokens) - sum(len(s.tokens) for s in current.segments)
        self.segments = [*current.segments, *([Segment([0] * spare)] if spare else [])]
        self.total = len(current.tokens)
        starts, at = [], 0
        for segment in self.segments:
            starts.append(at)
            at += len(segment.tokens)
        self._starts = {id(s): start for s, start in zip(self.segments, starts, strict=True)}
        self.pooled = [s for s in self.segments if s.cache is not None]

    def prepare(self, repeats: int, min_rows: int, device: torch.device) -> None:
        """Lay out the buckets; `repeats` query heads share a key head."""
        if self.device == device:
            return
        self.device = device
        for segment in self.pooled:
            assert segment.cache is not None
            segment.cache.make_room(len(segment.tokens))
        grouped: dict[tuple[int, int, bool], list[Segment]] = defaultdict(list)
        for segment in self.segments:
            count = len(segment.tokens)
            few = max(1, math.ceil(min_rows / repeats))
            padded = few if count <= few else _round_up(count, _QUERY_GRID)
            keys = _round_up(segment.first_position + count, BLOCK)
            grouped[padded, keys, segment.cache is not None].append(segment)
        self.buckets = [self._bucket(*key, some) for key, some in grouped.items()]
        self._index(list(grouped.values()))
        self._write = self._slots()

    def _bucket(self, count: int, keys: int, pooled: bool, some: list[Segment]) -> Bucket:
        starts = [self._starts[id(one)] for one in some]
        firsts = [one.first_position for one in some]
        sizes = torch.tensor([len(one.tokens) for one in some])[:, None]
        offsets = torch.arange(count)[None]
        begins = torch.tensor(starts)[:, None]
        rows = torch.where(offsets < sizes, begins + offsets, begins)
        padded = (offsets >= sizes).flatten()
        key_rows = key_blocks = None
        if pooled:
            blocks = [one.cache.blocks[: keys // BLOCK] for one in some if one.cache is not None]
            key_blocks = torch.tensor(blocks).to(self.device)
        else:
            key_rows = torch.stack([self._key_rows(one, keys) for one in some]).to(self.device)
        return Bucket(
            rows.to(self.device),
            (torch.tensor(firsts)[:, None] + offsets).to(self.device),
            key_rows,
            key_blocks,
            padded.to(self.device) if bool(padded.any()) else None,
            keys,
            min(firsts),
            max(firsts),
        )

    def _key_rows(self, one: Segment, keys: int) -> Tensor:
        start = self._starts[id(one)]
        rows = torch.arange(start, start + len(one.tokens))
        if one.after is not None:
            before = self._starts[id(one.after)]
            rows = torch.cat([torch.arange(before, before + len(one.after.tokens)), rows])
        return torch.nn.functional.pad(rows, (0, keys - rows.numel()), value=start)

    def _index(self, members: list[list[Segment]]) -> None:
        """Where each row's query and key stand among all buckets' rows, laid end to end."""
        queries = torch.zeros(self.total, dtype=torch.int64)
        keys = torch.zeros(self.total, dtype=torch.int64)
        shared: dict[int, list[Tensor]] = defaultdict(list)
        at_query = at_key = 0
        for bucket, some in zip(self.buckets, members, strict=True):
            for one in some:
                start, count = self._starts[id(one)], len(one.tokens)
                queries[start : start + count] = torch.arange(at_query, at_query + count)
                first = 0 if one.cache is not None else one.first_position
                keys[start : start + count] = torch.arange(count) + at_key + first
                if one.after is not None:
                    shared[id(one.after)].append(torch.arange(at_key, at_key + first))
                at_query += bucket.query_rows.shape[1]
                at_key += bucket.key_count if one.cache is None else 0
        self.query_places, self.key_places = queries.to(self.device), keys.to(self.device)
        self.shared = [
            (slice(self._starts[one], self._starts[one] + uses[0].numel()), torch.stack(uses))
            for one, uses in shared.items()
        ]

    def _slots(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Rows, blocks and offsets of what the pool is given."""
        if not self.pooled:
            return None
        rows, blocks, offsets = [], [], []
        for one in self.pooled:
            assert one.cache is not None
            start = self._starts[id(one)]
            rows += list(range(start, start + len(one.tokens)))
            into, places = one.cache.slots(len(one.tokens))
            blocks += into
            offsets += places
        made = [torch.tensor(column).to(self.device) for column in (rows, blocks, offsets)]
        return made[0], made[1], made[2]

    def keys_and_values(
        self, bucket: Bucket, layer: int, key_NGD: Tensor, value_NGD: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both [B, G, S, D]."""
        if bucket.key_rows is not None:
            count, keys = bucket.key_rows.shape
            rows = bucket.key_rows.flatten()
            return tuple(  # type: ignore[return-value]
                one.index_select(0, rows).view(count, keys, *one.shape[1:]).transpose(1, 2)
                for one in (key_NGD, value_NGD)
            )
        assert bucket.key_blocks is not None
        assert self.pooled[0].cache is not None
        held = self.pooled[0].cache.pool.layer(layer, key_NGD)
        count, blocks = bucket.key_blocks.shape
        flat = bucket.key_blocks.flatten()
        made = []
        for one in held:
            picked = one.index_select(0, flat).view(count, blocks, *one.shape[1:])
            made.append(picked.transpose(1, 2).flatten(2, 3))
        return made[0], made[1]

    def write(self, layer: int, key_NGD: Tensor, value_NGD: Tensor) -> None:
        """Put this pass's keys and values where the caches say."""
        if self._write is None:
            return
        rows, blocks, offsets = self._write
        assert self.pooled[0].cache is not None
        held = self.pooled[0].cache.pool.layer(layer, key_NGD)
        held[0, blocks, :, offsets] = key_NGD[rows]
        held[1, blocks, :, offsets] = value_NGD[rows]


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
