"""The element-wise steps of a layer, each one node with a backward pass of its own.

Compiled kernels serve where they can, torch's ops where they cannot: `kernels_for` decides by the
tensor. Sums are fp32 in both.

Legend: N rows, I features, H heads, D head size, V vocabulary, R rows of logits, P pairs.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinsmith_worker.engine.kernels import kernels_for

Context = Any  # torch.autograd.function.FunctionCtx says nothing of what is stored in it


@dataclass(frozen=True, eq=False)
class RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang & Sennrich 2019, eq. 4)."""

    weight: Tensor
    """fp32"""
    eps: float
    whole: bool
    """The product with the weight is not rounded before: Gemma's way."""

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = _call(_RMSNorm, x.contiguous(), None, self)[1]
        return y

    def after(self, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """x + delta, and its norm."""
        made: tuple[Tensor, Tensor] = _call(_RMSNorm, x, delta, self)
        return made


def _call(function: Any, *arguments: object) -> Any:
    """Without a gradient the node's bookkeeping, a third of a short step's time, is left out."""
    if torch.is_grad_enabled():
        return function.apply(*arguments)
    return function.forward(_NoContext(), *arguments)


class _NoContext:
    """Takes what a forward pass would keep, and keeps nothing."""

    needs_input_grad = (False,) * 8

    def save_for_backward(self, *tensors: object) -> None: ...

    def set_materialize_grads(self, value: bool) -> None: ...


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context, x: Tensor, delta: Tensor | None, norm: RMSNorm
    ) -> tuple[Tensor, Tensor]:
        summed = x if delta is None else torch.empty_like(x)
        y = torch.empty_like(x)
        if kernels := kernels_for(x):
            scales = torch.empty(x.shape[:-1], dtype=torch.float32)
            kept = None if delta is None else summed
            shape = (scales.numel(), x.shape[-1], norm.eps, norm.whole)
            kernels.call("rms_forward", x.dtype, x, delta, kept, norm.weight, y, scales, *shape)
        else:
            summed = x if delta is None else x + delta
            wide = summed.float()
            scales = (wide.square().mean(-1) + norm.eps).rsqrt_()
            normed = wide * scales[..., None]
            y = _weighted(normed, norm).to(x.dtype) if norm.whole else normed.to(x.dtype)
            y = y if norm.whole else y * norm.weight.to(x.dtype)
        ctx.save_for_backward(summed, scales)
        ctx.norm, ctx.adds = norm, delta is not None
        ctx.set_materialize_grads(False)
        return summed, y

    @staticmethod
    def backward(ctx: Context, grad_sum: Tensor | None, grad: Tensor) -> tuple[Tensor | None, ...]:
        summed, scales = ctx.saved_tensors
        norm: RMSNorm = ctx.norm
        if not any(ctx.needs_input_grad[:2]):
            return None, None, None
        grad_x = torch.empty_like(summed)
        if kernels := kernels_for(summed):
            past = None if grad_sum is None else grad_sum.contiguous()
            arguments = (summed, grad.contiguous(), past, norm.weight, scales, grad_x)
            kernels.call("rms_backward", summed.dtype, *arguments, scales.numel(), summed.shape[-1])
        else:
            normed = summed.float() * scales[..., None]
            weighted = _weighted(grad.float(), norm)
            along = (weighted * normed).mean(-1, keepdim=True)
            grad_x = weighted.sub_(normed.mul_(along)).mul_(scales[..., None]).to(summed.dtype)
            grad_x = grad_x if grad_sum is None else grad_x + grad_sum
        return grad_x, grad_x if ctx.adds else None, None


def _weighted(x: Tensor, norm: RMSNorm) -> Tensor:
    return x * norm.weight


def gated(gate_up_NO: Tensor, activation: str) -> Tensor:
    """act(gate) * up, the halves of `gate_up` [N, 2 I] (Shazeer 2020, eq. 5-6), [N, I]."""
    y: Tensor = _call(_Gated, gate_up_NO, activation)
    return y


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, gate_up: Tensor, activation: str) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.activation = activation
        gate, up = gate_up.chunk(2, -1)
        if kernels := kernels_for(gate_up):
            y = gate_up.new_empty(up.shape)
            size = (up.shape[0], up.shape[1], activation == "gelu")
            kernels.call("gated_forward", y.dtype, gate_up, y, *size)
            return y
        return _activate(gate, activation).mul_(up)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        made = torch.empty_like(gate_up)
        if kernels := kernels_for(gate_up):
            size = (up.shape[0], up.shape[1], ctx.activation == "gelu")
            kernels.call("gated_backward", grad.dtype, gate_up, grad.contiguous(), made, *size)
            return made, None
        grad_gate, grad_up = made.chunk(2, -1)
        torch.mul(grad, _activate(gate, ctx.activation), out=grad_up)
        inner = grad * up
        if ctx.activation == "silu":
            torch.ops.aten.silu_backward.grad_input(inner, gate, grad_input=grad_gate)
        else:
            grad_gate.copy_(torch.ops.aten.gelu_backward(inner, gate, approximate="tanh"))
        return made, None


def _activate(gate: Tensor, activation: str) -> Tensor:
    return F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")


@dataclass(frozen=True, eq=False)
class Angles:
    """Cosines and sines of every row's position, [N, D] each; the halves of a row are equal."""

    cosines: Tensor
    sines: Tensor


def rotate(x_NHD: Tensor, angles: Angles) -> Tensor:
    """Rotary positions, halves paired (Su et al. 2021, eq. 34)."""
    y: Tensor = _call(_Rotate, x_NHD.contiguous(), angles)
    return y


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor, angles: Angles) -> Tensor:
        ctx.angles = angles
        return _turned(x, torch.empty_like(x), angles, 1.0)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad.contiguous()
        return _turned(grad, torch.empty_like(grad), ctx.angles, -1.0), None


def split_rotated(
    qkv_NO: Tensor, angles: Angles, heads: int, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Query [N, H, D], key and value [N, G, D], the first two rotated, from one product's rows."""
    made: tuple[Tensor, Tensor, Tensor] = _call(_SplitRotated, qkv_NO, angles, heads, groups)
    return made


class _SplitRotated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context, qkv_NO: Tensor, angles: Angles, heads: int, groups: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.angles, ctx.counts = angles, (heads, groups, groups)
        query, key, value = _parts(qkv_NO, ctx.counts, angles)
        made = [_turned(x, x.new_empty(x.shape), angles, 1.0) for x in (query, key)]
        return made[0], made[1], value.contiguous()

    @staticmethod
    def backward(
        ctx: Context, grad_query: Tensor, grad_key: Tensor, grad_value: Tensor
    ) -> tuple[Tensor | None, ...]:
        size = grad_query.shape[-1]
        made_NO = grad_query.new_empty(grad_query.shape[0], sum(ctx.counts) * size)
        query, key, value = _parts(made_NO, ctx.counts, ctx.angles)
        _turned(grad_query.contiguous(), query, ctx.angles, -1.0)
        _turned(grad_key.contiguous(), key, ctx.angles, -1.0)
        value.copy_(grad_value)
        return made_NO, None, None, None


def _parts(rows_NO: Tensor, counts: tuple[int, ...], angles: Angles) -> list[Tensor]:
    size = angles.cosines.shape[-1]
    parts = rows_NO.split([count * size for count in counts], -1)
    return [part.unflatten(-1, (-1, size)) for part in parts]


def _turned(x_NHD: Tensor, into_NHD: Tensor, angles: Angles, sign: float) -> Tensor:
    """`into`, holding x turned by the angles; heads of a row are side by side, rows may be apart."""
    count, heads, size = x_NHD.shape
    if kernels := kernels_for(x_NHD):
        tensors = (x_NHD, x_NHD.stride(0), into_NHD, into_NHD.stride(0))
        table = (angles.cosines, angles.sines)
        kernels.call("rotate", x_NHD.dtype, *tensors, *table, count, heads, size, sign)
        return into_NHD
    cosines, sines = angles.cosines[:, None], angles.sines[:, None]
    half = size // 2
    crossed = torch.cat([-x_NHD[..., half:], x_NHD[..., :half]], -1)
    return into_NHD.copy_(x_NHD * cosines + crossed * (sines * sign))


def logsumexp(logits_RV: Tensor) -> Tensor:
    """fp32 [R]. The one way to a total, so that sampler and trainer get the same one."""
    if kernels := kernels_for(logits_RV):
        logits_RV = logits_RV.contiguous()
        total_R = torch.empty(logits_RV.shape[0], dtype=torch.float32)
        kernels.call("log_sum_exp", logits_RV.dtype, logits_RV, total_R, *logits_RV.shape)
        return total_R
    return logits_RV.float().logsumexp(-1)


def cross_entropy_backward(
    logits_RV: Tensor, total_R: Tensor, rows_P: Tensor, tokens_P: Tensor, weights_P: Tensor
) -> Tensor:
    """d loss / d logits for weights = d loss / d log p of pairs (row, token); rows ascend.

    d log p(t) / d logits = onehot(t) - softmax. The logits' memory is used for the answer.
    """
    count, columns = logits_RV.shape
    if kernels := kernels_for(logits_RV):
        firsts = torch.searchsorted(rows_P, torch.arange(count + 1))
        scratch = torch.zeros(torch.get_num_threads(), columns)
        pairs = (firsts, tokens_P, weights_P.contiguous(), torch.empty_like(weights_P), scratch)
        kernels.call(
            "cross_entropy_backward", logits_RV.dtype, logits_RV, total_R, *pairs, count, columns
        )
        return logits_RV
    sums_R = torch.zeros_like(total_R).index_add_(0, rows_P, weights_P)
    back_RV = logits_RV.float().sub_(total_R[:, None]).exp_().mul_(-sums_R[:, None])
    return back_RV.index_put_((rows_P, tokens_P), weights_P, accumulate=True)
