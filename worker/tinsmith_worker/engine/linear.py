"""Frozen linear maps with adapters on them.

What is frozen gets no gradient; what an adapter learns is added where its rows say, by the backward
pass itself, so that runs which share a pass never share a sum.

Legend: N rows, I input features, O output features, r rank, J linear maps that share an input.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tinsmith_worker.engine.packed import AdapterRows

Context = Any  # torch.autograd.function.FunctionCtx says nothing of what is stored in it
Paths = tuple[str, ...]


class Mixed(Protocol):
    def add(self, y_NO: Tensor, x_NI: Tensor, group: "LinearGroup") -> None: ...


class Rows(Protocol):
    """Which adapter each row is under, and from how many rows on a product is stable."""

    @property
    def adapter_rows(self) -> Sequence[AdapterRows]: ...

    @property
    def min_rows(self) -> int: ...

    @property
    def mixed(self) -> Mixed | None:
        """All adapters in common products, where no gradient is wanted and that is faster."""


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
        return onednn_linear(x_NI, self._blocked, self.bias)

    def backward(self, grad_NO: Tensor) -> Tensor:
        """What the input gets of the output's gradient."""
        if self._blocked is None:
            return grad_NO @ self.weight
        return onednn_linear(grad_NO, self.weight.T, None)


def onednn_linear(x_NI: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
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


def lora_linear(x_NI: Tensor, group: LinearGroup, current: "Rows") -> Tensor:
    """x W^T + b, plus scale (x A^T) B^T on the rows of each adapter (Hu et al. 2021), [N, O]."""
    touched = [one for one in current.adapter_rows if one.adapter.touches(group.paths)]
    if not torch.is_grad_enabled():
        y_NO = group.forward(x_NI)
        if current.mixed is not None:
            current.mixed.add(y_NO, x_NI, group)
        else:
            for one in touched:
                _add_lora(y_NO[one.rows], x_NI[one.rows], one, group, current.min_rows)
        return y_NO
    learns = any(one.gradient is not None for one in touched)
    anchor = torch.zeros((), requires_grad=True) if learns and not x_NI.requires_grad else None
    arguments = (x_NI, anchor, group, touched, current.min_rows)
    learned_NO: Tensor = _LoRALinear.apply(*arguments)  # type: ignore[no-untyped-call]
    return learned_NO


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(
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
    def backward(ctx: Context, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
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
