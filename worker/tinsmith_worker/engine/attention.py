"""Causal attention of a packed pass: each sequence by itself, like lengths side by side.

One function serves training, prefill and decode, and is built so that a position's output does not
depend, to the last bit, on which of them asks: scores are dot products over the head alone, the
softmax of a row meets only exact zeros beyond its position, and probabilities meet values in blocks
of BLOCK keys that are added in order.

Legend: N rows of the pass, B sequences of a bucket, T query positions, S key positions (a multiple
of BLOCK), H query heads, G key/value heads, R = H / G, D head size.
"""

import torch
from torch import Tensor

from tinsmith_worker.engine.attention_plan import Bucket, Plan
from tinsmith_worker.engine.kernels import kernels_for
from tinsmith_worker.engine.kv_pool import BLOCK
from tinsmith_worker.engine.packed import Pass

MOST_KEPT_KEYS = 1024
"""Up to here probabilities are kept for the backward pass, not computed again."""


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
