"""Several adapters side by side, for passes with few rows of each: decoding.

A short product costs its call, not its arithmetic. So the A's of all adapters are one matrix, the B's
of each linear map another, and what a row gets of other adapters is multiplied by zero in between:
the number of products does not depend on the number of adapters. Adding zeros changes no bit.

Legend: N rows, I and O features in and out, C columns: the ranks of all adapters and maps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tinsmith_worker.engine.adapter import Adapter, Paths
from tinsmith_worker.engine.linear import LinearGroup
from tinsmith_worker.engine.packed import AdapterRows

MAX_ROWS = 64
"""Beyond, each adapter's rows are enough to be worth products of their own."""
_MAX_RANKS = 1024
_TAME = 1e6  # larger weights could overflow in another's row, and infinity times zero is nan


@dataclass(frozen=True)
class _Joined:
    """One group's matrices: A [C, I], per map B [O, C / maps], and where its columns stand."""

    a: Tensor
    b: list[Tensor]
    places: list[slice]
    owners: Tensor
    """Each column's adapter, [C]."""


class AdapterMix:
    def __init__(self, adapters: Sequence[Adapter], dtype: torch.dtype) -> None:
        self.adapters, self._dtype = list(adapters), dtype
        self._places = {id(adapter): place for place, adapter in enumerate(adapters)}
        self._groups: dict[Paths, _Joined | None] = {}
        scales = [adapter.scale for adapter in adapters]
        self._scales = torch.tensor(scales, device=adapters[0].row.device)

    def covers(self, adapters: Sequence[Adapter]) -> bool:
        return all(id(adapter) in self._places for adapter in adapters)

    def shares(self, rows: Sequence[AdapterRows], count: int) -> "MixedRows":
        """For a pass of `count` rows."""
        owners = torch.full((count,), -1)
        for one in rows:
            owners[one.rows] = self._places[id(one.adapter)]
        return MixedRows(self, owners.to(self._scales.device))

    def joined(self, group: LinearGroup) -> _Joined | None:
        """None where no adapter is on this group."""
        if group.paths not in self._groups:
            self._groups[group.paths] = self._join(group)
        return self._groups[group.paths]

    def factors(self, joined: _Joined, owners_N: Tensor) -> Tensor:
        """The scale of a row's own adapter in its own columns, 0 elsewhere, [N, C]."""
        own_NC = owners_N[:, None] == joined.owners
        return torch.where(own_NC, self._scales[joined.owners], 0.0)

    def _join(self, group: LinearGroup) -> _Joined | None:
        touching = [one for one in self.adapters if one.touches(group.paths)]
        if not touching:
            return None
        a, b, places, owners = [], [], [], []
        start = 0
        for j, size in enumerate(group.sizes):
            columns = []
            for adapter in touching:
                lora = adapter.weights(group.paths, self._dtype)
                part = lora.b[j]
                if part is None:
                    part = lora.a.new_zeros(size, adapter.rank)
                a.append(lora.a[lora.places[j]])
                columns.append(part)
                owners += [self._places[id(adapter)]] * adapter.rank
            b.append(torch.cat(columns, 1))
            places.append(slice(start, start + b[-1].shape[1]))
            start = places[-1].stop
        device = a[0].device
        return _Joined(torch.cat(a), b, places, torch.tensor(owners, device=device))


class MixedRows:
    """A mix on the rows of one pass."""

    def __init__(self, mix: AdapterMix, owners_N: Tensor) -> None:
        self._mix, self._owners_N = mix, owners_N
        self._factors: dict[tuple[int, ...], Tensor] = {}

    def add(self, y_NO: Tensor, x_NI: Tensor, group: LinearGroup) -> None:
        """scale (x A^T) B^T to every row, each under its adapter."""
        joined = self._mix.joined(group)
        if joined is None:
            return
        shape = (len(joined.b), joined.a.shape[0])
        if shape not in self._factors:
            self._factors[shape] = self._mix.factors(joined, self._owners_N)
        h_NC = F.linear(x_NI, joined.a).mul_(self._factors[shape])
        for b, place, out in zip(joined.b, joined.places, group.slices, strict=True):
            y_NO[:, out].add_(h_NC[:, place] @ b.T)


class AdapterMixes:
    """The mixes in use; a pass of fewer adapters is served by a mix of more."""

    def __init__(self) -> None:
        self._held: list[AdapterMix] = []

    def for_rows(
        self, rows: Sequence[AdapterRows], count: int, dtype: torch.dtype
    ) -> MixedRows | None:
        """None where separate products serve better or an adapter is not tame."""
        adapters = list({id(one.adapter): one.adapter for one in rows}.values())
        ranks = sum(adapter.rank for adapter in adapters)
        if len(adapters) < 2 or count > MAX_ROWS or ranks > _MAX_RANKS:
            return None
        if not all(adapter.largest < _TAME for adapter in adapters):
            return None
        found = next((mix for mix in self._held if mix.covers(adapters)), None)
        mix = found or AdapterMix(adapters, dtype)
        self._held = [mix, *(one for one in self._held if one is not mix)][:2]
        return mix.shares(rows, count)
