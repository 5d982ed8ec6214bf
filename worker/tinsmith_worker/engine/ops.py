"""The differentiable steps of a layer, each one node with a backward pass of its own.

What is frozen gets no gradient; what an adapter learns is added where its rows say, by the backward
pass itself, so that runs which share a pass never share a sum.

Legend: N rows, I input features, O output features, r rank, J linear maps that share an input.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinsmith_worker.engine.packed import AdapterRows

Context = Any  # torch.autograd.function.FunctionCtx says nothing of what is stored in it
Paths = tuple[str, ...]


class LinearGroup:
    """Frozen linear maps with one input, as one matrix; `paths` name them, `slices` find them.

    On the CPU the products are oneDNN's, and a copy in its blocked layout serves the forward one:
    its gain stands in docs/performance.md.
    """

    def __init__(self, paths: Paths, weights: Sequence[Tensor], biases: Sequence[Tensor | None]):
        self.paths = paths
        self.weight = weights[0] if len(weights) == 1 else torch.cat(list(weights))
        self.bias = _joined(weights, biases)
        self.sizes = [weight.shape[0] for weight in weights]
        self.in_features = weights[0].shape[1]
        ends = torch.tensor(self.sizes).cumsum(0).tolist()
        self.slices = [slice(end - size, end) for end, size in zip(ends, self.sizes, strict=True)]
        self._blocked: Tensor | None = None
        if self.weight.device.type == "cpu" and torch.backends.mkldnn.is_available():
            self._blocked = torch.ops.mkldnn._reorder_linear_weight(self.weight, None)

    def forward(self, x_NI: Tensor) -> Tensor:
        if self._blocked is None:
            return F.linear(x_NI, self.weight, self.bias)
        return _onednn_linear(x_NI, self._blocked, self.bias)

    def backward(self, grad_NO: Tensor) -> Tensor:
        """What the input gets of the output's gradient."""
        if self._blocked is None:
            return grad_NO @ self.weight
        return _onednn_linear(grad_NO, self.weight.T, None)


def _onednn_linear(x_NI: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y_NO: Tensor = torch.ops.mkldnn._linear_pointwise(x_NI, weight, bias, "none", [], "")
    return y_NO


def _joined(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor | None:
    if all(bias is None for bias in biases):
        return None
    return torch.cat(
        [
            weight.new_zeros(weight.shape[0]) if bias is None else bias
            for weight, bias in zip(weights, biases, strict=True)
        ]
    )


def lora_linear(
    x_NI: Tensor, group: LinearGroup, rows: Sequence[AdapterRows], min_rows: int = 1
) -> Tensor:
    """x W^T + b, plus scale (x A^T) B^T on the rows of each adapter (Hu et al. 2021), [N, O]."""
    touched = [one for one in rows if one.adapter.touches(group.paths)]
    learns = torch.is_grad_enabled() and any(one.gradient is not None for one in touched)
    anchor = torch.zeros((), requires_grad=True) if learns and not x_NI.requires_grad else None
    y_NO: Tensor = _LoRALinear.apply(x_NI, anchor, group, touched, min_rows)
    return y_NO


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Context,
        x_NI: Tensor,
        anchor: Tensor | None,
        group: LinearGroup,
        rows: list[AdapterRows],
        min_rows: int,
    ) -> Tensor:
        """`anchor` ties the node to the graph where nothing below it learns."""
        y_NO = group.forward(x_NI)
        inner = [_add_lora(y_NO[one.rows], x_NI[one.rows], one, group, min_rows) for one in rows]
        ctx.group, ctx.rows = group, rows
        learns = any(one.gradient is not None for one in rows)
        ctx.save_for_backward(x_NI if learns else None, *inner)
        return y_NO

    @staticmethod
    def backward(ctx: Context, grad_NO: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_NI, *inner = ctx.saved_tensors
        group: LinearGroup = ctx.group
        grad_NI = group.backward(grad_NO) if ctx.needs_input_grad[0] else None
        for one, h_Nr in zip(ctx.rows, inner, strict=True):
            lora = one.adapter.weights(group.paths, grad_NO.dtype)
            grad_Nr, grad_b = _through_b(grad_NO[one.rows], h_Nr, one, group)
            if one.gradient is not None:
                one.gradient.add(group.paths, grad_Nr.T @ x_NI[one.rows], grad_b)
            if grad_NI is not None:
                grad_NI[one.rows].addmm_(grad_Nr, lora.a)
        return grad_NI, None, None, None, None


def _add_lora(
    y_NO: Tensor, x_NI: Tensor, one: AdapterRows, group: LinearGroup, min_rows: int
) -> Tensor:
    """Add one adapter's part to its rows; answers scale x A^T [N, J r] for the backward pass."""
    lora = one.adapter.weights(group.paths, x_NI.dtype)
    count = x_NI.shape[0]
    short = count < min_rows
    x = F.pad(x_NI, (0, 0, 0, min_rows - count)) if short else x_NI
    h = F.linear(x, lora.a).mul_(one.adapter.scale)
    for b, place, out in zip(lora.b, lora.places, group.slices, strict=True):
        if b is None:
            continue
        if short:
            y_NO[:, out].add_((h[:, place] @ b.T)[:count])
        else:
            y_NO[:, out].add_(h[:, place] @ b.T)
    return h[:count]


def _through_b(
    grad_NO: Tensor, h_Nr: Tensor, one: AdapterRows, group: LinearGroup
) -> tuple[Tensor, list[Tensor | None]]:
    """The gradient of x A^T, and that of each B where it is wanted."""
    lora = one.adapter.weights(group.paths, grad_NO.dtype)
    grad_Nr = torch.empty_like(h_Nr)
    grad_b: list[Tensor | None] = []
    for b, place, out in zip(lora.b, lora.places, group.slices, strict=True):
        if b is None:
            grad_b.append(None)
            continue
        grad = grad_NO[:, out]
        grad_Nr[:, place] = grad @ b
        grad_b.append(None if one.gradient is None else grad.T @ h_Nr[:, place])
    return grad_Nr.mul_(one.adapter.scale), grad_b


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang & Sennrich 2019, eq. 4)."""
    y: Tensor = _RMSNorm.apply(x, weight, eps)
    return y


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        wide = x.float()
        scale = (wide.square().mean(-1, keepdim=True) + eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        if weight.dtype == x.dtype:
            return (wide * scale).to(x.dtype) * weight
        return (wide * scale * weight).to(x.dtype)  # Gemma's, kept in fp32: 1 + w

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, scale = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, None, None
        normed = x.float() * scale
        weighted = (grad * weight).float()
        along = (weighted * normed).mean(-1, keepdim=True)
        return weighted.sub_(normed.mul_(along)).mul_(scale).to(x.dtype), None, None


def gated(gate_up_NO: Tensor, activation: str) -> Tensor:
    """act(gate) * up, the halves of `gate_up` [N, 2 I] (Shazeer 2020, eq. 5-6), [N, I]."""
    y: Tensor = _Gated.apply(gate_up_NO, activation)
    return y


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, gate_up: Tensor, activation: str) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(gate_up)
        ctx.activation = activation
        gate, up = gate_up.chunk(2, -1)
        return _activate(gate, activation).mul_(up)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        made = torch.empty_like(gate_up)
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


def rotate(x_NHD: Tensor, cos_ND: Tensor, sin_ND: Tensor) -> Tensor:
    """Rotary positions, halves paired (Su et al. 2021, eq. 34); `sin` negative in its first half."""
    y: Tensor = _Rotate.apply(x_NHD, cos_ND[:, None], sin_ND[:, None])
    return y


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        back = (grad * cos).addcmul_(grad.roll(grad.shape[-1] // 2, -1), sin, value=-1)
        return back, None, None
