"""The unembedding of a model in half precision: fp32 logits of weights that stay as they are.

Rounded to bf16 a logit of 14 is off by up to 0.03 nats. That is more than two models differ by late in
training, and where it falls differently on both sides, a model differs from itself. The products sum in
fp32 anyway: what is lost is lost when they are written down.

Legend: N rows, I input features, O output features.
"""

import torch
from torch import Tensor

from tinsmith_worker.engine.linear import LinearGroup, Paths, onednn_linear


def unembedding(paths: Paths, weight: Tensor, bias: Tensor | None) -> LinearGroup:
    kind = LinearGroup if weight.dtype == torch.float32 else _WideLinear
    return kind(paths, [weight], [bias])


class _WideLinear(LinearGroup):
    """Rows are of the weights' dtype or fp32 that holds such numbers; the output is fp32."""

    def forward(self, x_NI: Tensor) -> Tensor:
        x_NI = x_NI.to(self.weight.dtype)
        if self._blocked is not None:
            return _in_two(x_NI, self._blocked, self.bias)
        y_NO = _product(x_NI, self.weight.T)
        return y_NO if self.bias is None else y_NO.add_(self.bias)

    def backward(self, grad_NO: Tensor) -> Tensor:
        """The gradient is rounded, as all gradients below are; their sum over O is not."""
        grad_NO = grad_NO.to(self.weight.dtype)
        if self._blocked is not None:
            return super().backward(grad_NO).float()
        return _product(grad_NO, self.weight)


def _product(x_NI: Tensor, weight_IO: Tensor) -> Tensor:
    if x_NI.is_cuda:
        return torch.mm(x_NI, weight_IO, out_dtype=torch.float32)
    return x_NI.float() @ weight_IO.float()


def _in_two(x_NI: Tensor, blocked: Tensor, bias: Tensor | None) -> Tensor:
    """oneDNN writes no fp32 of bf16 factors. But it adds before it rounds: the product, and what its
    rounding left out, are the sum to 17 bits, at a fifth of what fp32 factors cost."""
    rounded_NO = onednn_linear(x_NI, blocked, bias)
    rest_NO = torch.ops.mkldnn._linear_pointwise.binary(
        x_NI, rounded_NO.neg(), blocked, bias, "add"
    )
    return rounded_NO.float().add_(rest_NO)
