"""Exact or fast: which shortcuts leave a row's bits alone on this machine.

Below some number of rows a matrix library takes other kernels, which round otherwise; and a product
over more columns may be summed in another order, even where the others are zero. In exact mode
neither happens, so that a token's logprob is one number to the last bit, whether it is sampled,
trained on, alone or in company. What it takes is a property of the machine: it is tried.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
_TRIED = (1, 4, 8, 16, 32, 64, 128)
_ROWS = 512
_RANKS = (8, 32, 16)


@dataclass(frozen=True)
class Numerics:
    exact: bool
    min_rows: int
    """What every product is padded to; 1 in fast mode."""
    mixes: bool
    """Whether adapters may share products (`adapter_mix`)."""
    held: bool
    """Whether rows were found to be equal at all; false in fast mode, where it is not asked."""

    @classmethod
    def fast(cls) -> Self:
        return cls(exact=False, min_rows=1, mixes=True, held=False)

    def __and__(self, other: Self) -> Self:
        """What both take."""
        return replace(
            self,
            min_rows=max(self.min_rows, other.min_rows),
            mixes=self.mixes and other.mixes,
            held=self.held and other.held,
        )

    @classmethod
    def probe(
        cls, products: Sequence[tuple[int, Product]], device: torch.device, dtype: torch.dtype
    ) -> Self:
        """Try a model's own products, each with its number of features in, on random rows."""
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device, dtype)

        sizes = sorted({size for size, _ in products})
        for rank in _RANKS:
            for size in sizes:
                products = [*products, (size, _times(random(rank, size)))]
                products = [*products, (rank, _times(random(size, rank)))]
        cases = [(random(_ROWS, size), product) for size, product in products]
        batch = random(3, 64, 48)
        cases.append((random(_ROWS, 48), lambda x: torch.bmm(x.expand(3, -1, -1), batch.mT)[0]))
        stable = (n for n in _TRIED if all(_stable(x, product, n) for x, product in cases))
        min_rows = next(stable, None)
        mixes = all(_mixes(random, size, min_rows or _TRIED[-1]) for size in sizes)
        return cls(
            exact=True,
            min_rows=min_rows or _TRIED[-1],
            mixes=mixes and min_rows is not None,
            held=min_rows is not None,
        )


def _times(weight_OI: Tensor) -> Product:
    return lambda x_NI: x_NI @ weight_OI.T


def _stable(x_NI: Tensor, product: Product, count: int) -> bool:
    """Whether products of `count` rows and somewhat more agree with the product of many."""
    whole = product(x_NI)
    some = (count, count + 1, count + 3, 2 * count, 3 * count + 1)
    return all(torch.equal(product(x_NI[-n:]), whole[-n:]) for n in some)


def _mixes(random: Callable[..., Tensor], size: int, count: int) -> bool:
    """Whether adapters side by side give each row what its own gives it alone."""
    a = [random(rank, size) for rank in _RANKS]
    b = [random(size, rank) for rank in _RANKS]
    x_NI = random(max(count, 8), size)
    joined = x_NI @ torch.cat(a).T
    start = 0
    for rank, own_a, own_b in zip(_RANKS, a, b, strict=True):
        columns = slice(start, start + rank)
        start += rank
        h = x_NI @ own_a.T
        alone = torch.zeros_like(joined)
        alone[:, columns] = h
        if not torch.equal(joined[:, columns], h):
            return False
        if not torch.equal(alone @ torch.cat(b, 1).T, h @ own_b.T):
            return False
    return True
