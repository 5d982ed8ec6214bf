"""What each name that a custom loss may call does. The names are the protocol's, in fixed lists.

Most are torch's own functions. Guarded by hand: Python's operators, which would also repeat texts and
lists and raise whole numbers to any power; what makes a list of tensors, whose length must be known
first; and einsum, whose intermediates can be larger than its result.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tinsmith.protocol import loss_operations as names
from tinsmith.protocol.loss_operations import ATTRIBUTES
from torch import Tensor

MAX_PARTS = 1024
_MAX_BITS = 62
_EINSUM_CELLS = 1 << 25
_SORTS = frozenset({"sort", "argsort", "topk", "median", "quantile"})
_PRODUCTS = names.PRODUCTS | {"matmul"}

Function = Callable[..., Any]


def inner_size(name: str, read: Sequence[Any]) -> int:
    """How many steps a result's number costs beyond reading and writing it."""
    first = next((one for one in read if isinstance(one, Tensor)), None)
    if first is None or not first.ndim:
        return 0
    if name in _PRODUCTS:
        return first.shape[-1]
    if name in _SORTS:
        return 16
    return 0


def _arithmetic(name: str) -> Function:
    function: Function = getattr(operator, name)

    def guarded(*operands: Any) -> Any:
        for one in operands:
            if not isinstance(one, Tensor | int | float):
                raise TypeError(f"{type(one).__name__} is neither a tensor nor a number")
        if name == "pow" and all(isinstance(one, int) for one in operands):
            _check_power(*operands)
        return function(*operands)

    return guarded


def _check_power(base: int, exponent: int) -> None:
    if exponent * max(1, base.bit_length()) > _MAX_BITS:
        raise OverflowError("the power is too large a number")


def _math(name: str) -> Function:
    function: Function = getattr(math, name)

    def guarded(*operands: Any) -> Any:
        if not all(isinstance(one, int | float) for one in operands):
            raise TypeError(f"it takes numbers only; for tensors use torch.{name}")
        return function(*operands)

    return guarded


def _getattr(value: Any, name: str) -> Any:
    if name not in ATTRIBUTES or not isinstance(value, Tensor | tuple):
        raise TypeError(f"no attribute {name!r} can be read here")
    return getattr(value, name)


def _getitem(value: Any, index: Any) -> Any:
    if not isinstance(value, Tensor | tuple | list):
        raise TypeError(f"a {type(value).__name__} has no items")
    return value[index]


def _parts(function: Function, count: Callable[..., int]) -> Function:
    """Of a function that gives a list of tensors, after a look at how many."""

    def guarded(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if count(tensor, *args, **kwargs) > MAX_PARTS:
            raise ValueError(f"it would give more than {MAX_PARTS} tensors")
        return function(tensor, *args, **kwargs)

    return guarded


def _split_count(tensor: Tensor, split_size: Any, dim: int = 0) -> int:
    if isinstance(split_size, int):
        return -(-tensor.shape[dim] // max(1, split_size))
    return len(split_size)


def _chunk_count(tensor: Tensor, chunks: int, dim: int = 0) -> int:
    return min(chunks, tensor.shape[dim])


def _unbind_count(tensor: Tensor, dim: int = 0) -> int:
    return tensor.shape[dim]


def _torch_split(tensor: Tensor, split_size_or_sections: Any, dim: int = 0) -> Any:
    return torch.split(tensor, split_size_or_sections, dim)


def _einsum(equation: str, *operands: Tensor) -> Tensor:
    given = (
        operands[0] if len(operands) == 1 and isinstance(operands[0], list | tuple) else operands
    )
    labels = equation.replace(" ", "").partition("->")[0].split(",")
    if len(labels) != len(given) or len(given) > 4:
        raise ValueError("as many operands as the equation has, and at most four")
    sizes: dict[str, int] = {}
    for text, tensor in zip(labels, given, strict=True):
        if len(text) != tensor.ndim:
            raise ValueError(f"{text!r} does not fit a tensor of shape {list(tensor.shape)}")
        sizes |= dict(zip(text, tensor.shape, strict=True))
    if math.prod(sizes.values()) > _EINSUM_CELLS:
        raise ValueError(f"it would multiply more than {_EINSUM_CELLS} numbers")
    return torch.einsum(equation, *given)


def _linalg_norm(tensor: Tensor, ord: Any = None, dim: Any = None, **more: Any) -> Tensor:
    """Without the norms of matrices that need their singular values."""
    if ord not in (None, "fro") and not (tensor.ndim == 1 or isinstance(dim, int)):
        raise ValueError("of a matrix only the 'fro' norm can be asked for; or give one dim")
    found: Tensor = torch.linalg.norm(tensor, ord, dim, **more)
    return found


def _find(path: str) -> Function:
    """A function of torch by a path from the protocol's lists."""
    found: Any = torch
    for part in path.split(".")[1:]:
        found = getattr(found, part)
    function: Function = found
    return function


def _called(name: str) -> Function:
    function: Function = getattr(Tensor, name)

    def call(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"a {type(tensor).__name__} is no tensor")
        return function(tensor, *args, **kwargs)

    return call


_SPLIT = _parts(_torch_split, _split_count)
_CHUNK, _UNBIND = _parts(torch.chunk, _chunk_count), _parts(torch.unbind, _unbind_count)
PLACED = frozenset(f"torch.{name}" for name in names.FACTORIES)
"""What makes a tensor out of nothing, and must be told where."""

FUNCTIONS: Mapping[str, Function] = (
    {name: _find(name) for name in names.FUNCTIONS if name.startswith("torch.")}
    | {f"operator.{name}": _arithmetic(name) for name in (*names.ARITHMETIC, "matmul")}
    | {f"math.{name}": _math(name) for name in names.MATH}
    | {
        "getattr": _getattr,
        "operator.getitem": _getitem,
        "torch.functional.einsum": _einsum,
        "torch.functional.split": _SPLIT,
        "torch.split": _SPLIT,
        "torch.chunk": _CHUNK,
        "torch.unbind": _UNBIND,
        "torch._C._linalg.linalg_norm": _linalg_norm,
    }
)
METHODS: Mapping[str, Function] = {name: _called(name) for name in names.METHODS} | {
    "split": _SPLIT,
    "chunk": _CHUNK,
    "unbind": _UNBIND,
}
