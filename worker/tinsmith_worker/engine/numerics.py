"""Exact or fast: from how many rows on a matrix product gives each row the same bits in any company.

Below some number of rows a matrix library takes other kernels, which round otherwise. In exact mode
no product has fewer, so that a token's logprob is one number to the last bit, whether it is sampled,
trained on, alone or in company. How many rows that takes is a property of the machine: it is tried.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

_TRIED = (1, 4, 8, 16, 32, 64, 128)
_SHAPES = ((64, 48), (576, 960), (192, 1536))  # features in and out
_ROWS = 512


@dataclass(frozen=True)
class Numerics:
    exact: bool
    min_rows: int
    """What every product is padded to; 1 in fast mode."""
    held: bool
    """Whether the probe found rows to be equal at all; false in fast mode, where it is not asked."""

    @classmethod
    def probe(cls, device: torch.device, dtype: torch.dtype, exact: bool) -> Self:
        if not exact:
            return cls(exact=False, min_rows=1, held=False)
        generator = torch.Generator().manual_seed(0)
        pairs = [
            tuple(
                torch.randn(size, inner, generator=generator).to(device, dtype)
                for size in (_ROWS, outer)
            )
            for inner, outer in _SHAPES
        ]
        for count in _TRIED:
            if all(_stable(x, weight, count) for x, weight in pairs):
                return cls(exact=True, min_rows=count, held=True)
        return cls(exact=True, min_rows=_TRIED[-1], held=False)


def _stable(x_NI: Tensor, weight_OI: Tensor, count: int) -> bool:
    """Whether products of `count` rows and somewhat more agree with the product of many."""
    whole_NO = x_NI @ weight_OI.T
    whole_NI = whole_NO @ weight_OI
    batch = torch.bmm(x_NI.expand(3, -1, -1), weight_OI.T.expand(3, -1, -1))[0]
    for some in (count, count + 1, count + 3, 2 * count, 3 * count + 1):
        part = slice(_ROWS - some, _ROWS)
        left, expanded = x_NI[part], x_NI[part].expand(3, -1, -1)
        same = (
            torch.equal(left @ weight_OI.T, whole_NO[part])
            and torch.equal(whole_NO[part] @ weight_OI, whole_NI[part])
            and torch.equal(torch.bmm(expanded, weight_OI.T.expand(3, -1, -1))[0], batch[part])
        )
        if not same:
            return False
    return True
