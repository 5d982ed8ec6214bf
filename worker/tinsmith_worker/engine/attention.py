"""Causal attention of a packed pass: each sequence by itself, like lengths side by side.

One function serves training, prefill and decode, and is built so that a position's output does not
depend, to the last bit, on which of them asks: scores are dot products over the head alone, the
softmax of a row meets only exact zeros beyond its position, and probabilities meet values in blocks
of BLOCK keys that are added in order.

Legend: N rows of the pass, B sequences of a bucket, T query positions, S key positions (a multiple
of BLOCK), H query heads, G key/value heads, R = H / G, D head size, C = BLOCK.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tinsmith_worker.engine.kernels import kernels_for
from tinsmith_worker.engine.kv_pool import BLOCK
from tinsmith_worker.engine.packed import Pass, Segment

_QUERY_GRID = 16  # lengths are rounded up to it, so that like lengths share a bucket
_QUERY_STEP = 128  # queries that share one set of keys
MOST_KEPT_KEYS = 1024
"""Up to here probabilities are kept for the backward pass, not computed again."""


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


def attention(
    query_NHD: Tensor,
    key_NGD: Tensor,
    value_NGD: Tensor,
    current: Pass,
    layer: int,
    *,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Outputs [N, H, D]."""
    repeats = query_NHD.shape[1] // key_NGD.shape[1]
    current.plan.prepare(repeats, current.min_rows, query_NHD.device)
    attended: Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
        query_NHD, key_NGD, value_NGD, current.plan, layer, scale, window
    )
    return attended


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: "torch.autograd.function.FunctionCtx",
        query_NHD: Tensor,
        key_NGD: Tensor,
        value_NGD: Tensor,
        plan: Plan,
        layer: int,
        scale: float,
        window: int | None,
    ) -> Tensor:
        plan.write(layer, key_NGD, value_NGD)
        kept: list[Tensor] = []
        wanted = any(ctx.needs_input_grad[:3])  # type: ignore[attr-defined]
        outputs = []
        for bucket in plan.buckets:
            query = _by_group(query_NHD, bucket, key_NGD.shape[1])
            key, value = plan.keys_and_values(bucket, layer, key_NGD, value_NGD)
            out, probabilities = _forward(bucket, query, key, value, scale, window)
            outputs.append(out.transpose(1, 2).flatten(0, 1).flatten(1, 2))
            if wanted and bucket.key_count <= MOST_KEPT_KEYS:
                kept += probabilities
        out_NHD = torch.cat(outputs).index_select(0, plan.query_places)
        if wanted:
            ctx.save_for_backward(query_NHD, key_NGD, value_NGD, out_NHD, *kept)
            ctx.how = (plan, layer, scale, window)  # type: ignore[attr-defined]
        return out_NHD

    @staticmethod
    def backward(
        ctx: "torch.autograd.function.FunctionCtx", grad_NHD: Tensor
    ) -> tuple[Tensor | None, ...]:
        query_NHD, key_NGD, value_NGD, out_NHD, *kept = ctx.saved_tensors  # type: ignore[attr-defined]
        plan, layer, scale, window = ctx.how  # type: ignore[attr-defined]
        groups = key_NGD.shape[1]
        # Row sums of dP * P, by way of the output (Dao 2023, FlashAttention-2, eq. 4).
        sums_NH1 = (grad_NHD * out_NHD).sum(-1, keepdim=True, dtype=torch.float32)
        queries, keys, values = [], [], []
        remaining = iter(kept)
        for bucket in plan.buckets:
            query = _by_group(query_NHD, bucket, groups)
            key, value = plan.keys_and_values(bucket, layer, key_NGD, value_NGD)
            steps = list(bucket.steps(window))
            if bucket.key_count <= MOST_KEPT_KEYS:
                probabilities = [next(remaining) for _ in steps]
            else:
                _, probabilities = _forward(bucket, query, key, value, scale, window)
            grad = _by_group(grad_NHD, bucket, groups, zero_padding=True)
            sums = _by_group(sums_NH1, bucket, groups, zero_padding=True)
            dq, dk, dv = _backward(steps, query, key, value, probabilities, grad, sums, scale)
            queries.append(dq.transpose(1, 2).flatten(0, 1).flatten(1, 2))
            keys.append(dk.transpose(1, 2).flatten(0, 1))
            values.append(dv.transpose(1, 2).flatten(0, 1))
        return (
            torch.cat(queries).index_select(0, plan.query_places),
            _gather_shared(torch.cat(keys), plan),
            _gather_shared(torch.cat(values), plan),
            None,
            None,
            None,
            None,
        )


def _by_group(rows_NHD: Tensor, bucket: Bucket, groups: int, zero_padding: bool = False) -> Tensor:
    """The bucket's rows as [B, G, T, R, D]."""
    count, length = bucket.query_rows.shape
    heads, size = rows_NHD.shape[1:]
    picked = rows_NHD.index_select(0, bucket.query_rows.flatten())
    if zero_padding and bucket.padded is not None:
        picked[bucket.padded] = 0
    shaped = picked.view(count, length, groups, heads // groups, size)
    return shaped.transpose(1, 2).contiguous()


def _forward(
    bucket: Bucket, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None
) -> tuple[Tensor, list[Tensor]]:
    """Outputs [B, G, T, R, D]; per step the probabilities [B * G, T * R, S]."""
    count, groups, _, repeats, size = query.shape
    keys = key.reshape(count * groups, -1, size)
    values = value.reshape(count * groups, -1, size)
    outputs, kept = [], []
    for queries, end, free in bucket.steps(window):
        some = query[:, :, queries].reshape(count * groups, -1, size)
        scores = torch.bmm(some, keys[:, :end].transpose(1, 2))
        probabilities = _softmax(
            bucket, scores.view(count, groups, -1, repeats, end), queries, free, scale, window
        )
        probabilities = probabilities.view(scores.shape)
        out = torch.bmm(probabilities[..., :BLOCK], values[:, :BLOCK])
        for at in range(BLOCK, end, BLOCK):
            out += torch.bmm(probabilities[..., at : at + BLOCK], values[:, at : at + BLOCK])
        outputs.append(out.view(count, groups, -1, repeats, size))
        kept.append(probabilities)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2), kept


def _softmax(
    bucket: Bucket,
    scores: Tensor,
    queries: slice,
    free: int,
    scale: float,
    window: int | None,
) -> Tensor:
    """Probabilities [B, G, T, R, S] over the keys that each query may see, from scores of that shape."""
    positions = bucket.query_positions[:, queries]
    if kernels := kernels_for(scores):
        how = (positions.stride(0), *scores.shape, scale, window or 0)
        kernels.call("softmax_forward", scores.dtype, scores, positions, *how)
        return scores
    scores = scores.mul_(scale)
    if free < scores.shape[-1]:
        bias = bucket.bias(queries, slice(free, scores.shape[-1]), window, scores.dtype)
        scores[..., free:] += bias
    return scores.softmax(-1)


def _softmax_backward(grad: Tensor, p: Tensor, totals: Tensor, scale: float) -> Tensor:
    """d loss / d scores, in the memory of d loss / d p; totals are its row sums weighted by p."""
    if kernels := kernels_for(grad):
        rows = (grad.shape[0] * grad.shape[1], grad.shape[2], scale)
        kernels.call("softmax_backward", grad.dtype, grad, p, totals.contiguous(), *rows)
        return grad
    return grad.sub_(totals).mul_(p).mul_(scale)


def _backward(
    steps: list[tuple[slice, int, int]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    probabilities: list[Tensor],
    grad: Tensor,
    sums: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query [B, G, T, R, D], key and value [B, G, S, D]."""
    count, groups, _, repeats, size = query.shape
    keys = key.reshape(count * groups, -1, size)
    values = value.reshape(count * groups, -1, size)
    grad_keys, grad_values = torch.zeros_like(keys), torch.zeros_like(values)
    grad_queries = []
    for (queries, end, _), p in zip(steps, probabilities, strict=True):
        some, out, total = (
            one[:, :, queries].reshape(count * groups, p.shape[1], -1)
            for one in (query, grad, sums)
        )
        grad_values[:, :end] += torch.bmm(p.transpose(1, 2), out)
        dp = torch.bmm(out, values[:, :end].transpose(1, 2))
        ds = _softmax_backward(dp, p, total, scale)
        grad_queries.append(torch.bmm(ds, keys[:, :end]).view(count, groups, -1, repeats, size))
        grad_keys[:, :end] += torch.bmm(ds.transpose(1, 2), some)
    return torch.cat(grad_queries, 2), grad_keys.view_as(key), grad_values.view_as(value)


def _gather_shared(flat_KGD: Tensor, plan: Plan) -> Tensor:
    """Back to rows of the pass; a shared prompt's rows gather from all who looked at them."""
    rows = flat_KGD.index_select(0, plan.key_places)
    for prefix, uses in plan.shared:
        picked = flat_KGD.index_select(0, uses.flatten().to(flat_KGD.device))
        total = picked.view(*uses.shape, *flat_KGD.shape[1:]).sum(0, dtype=torch.float32)
        rows[prefix] += total.to(rows.dtype)
    return rows


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
