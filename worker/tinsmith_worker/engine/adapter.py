"""LoRA adapters: which modules they touch, how they begin, how PEFT spells them.

Every adapter of the service has alpha 32, so its scale is 32 / rank and one learning rate suits
every rank (tinker-docs, "LoRA primer"). A begins uniform as in PEFT, B begins zero: an untrained
adapter is the base model.

All its numbers lie in one flat fp32 row, and so do its gradient and Adam's moments: a step, a norm
and a copy are each one sweep over memory. Linear maps that share an input have their A's side by
side in the row, so that one product serves them all.

Legend: P numbers of the adapter, r rank, I and O features in and out, J maps of a group.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from tinsmith_worker.engine.values import InvalidInput

ALPHA = 32.0
_PREFIX = "base_model.model."
Paths = tuple[str, ...]


class Shapes(Protocol):
    """What an adapter must know of its base model."""

    device: torch.device

    def groups(self) -> Sequence[Paths]:
        """Linear maps by path, those with one input together, in the model's order."""

    def place(self, path: str) -> str:
        """attn, mlp or unembed."""

    def shape(self, path: str) -> tuple[int, int]:
        """Features out and in."""


@dataclass(frozen=True)
class Matrices:
    """One group's part of a flat row: A [J r, I], and per map B [O, r] and its columns of x A^T."""

    a: Tensor
    b: tuple[Tensor | None, ...]
    places: tuple[slice, ...]


@dataclass(frozen=True)
class _Group:
    """Where a group stands in the row. `b` is None for a map that the adapter leaves alone."""

    a: tuple[int, tuple[int, int]]
    b: tuple[tuple[int, tuple[int, int]] | None, ...]
    places: tuple[slice, ...]


class Layout:
    """Where each matrix of an adapter stands in its flat row."""

    def __init__(self, model: Shapes, rank: int, trains: Mapping[str, bool]) -> None:
        self.groups: dict[Paths, _Group] = {}
        self.named: dict[str, tuple[int, tuple[int, int]]] = {}
        self.size = 0
        for paths in model.groups():
            mine = [path for path in paths if trains[model.place(path)]]
            if mine:
                self._add(model, rank, paths, mine)

    def _add(self, model: Shapes, rank: int, paths: Paths, mine: list[str]) -> None:
        in_features = model.shape(mine[0])[1]
        first = self.size
        for path in mine:
            self.named[f"{_PREFIX}{path}.lora_A.weight"] = self._take(rank, in_features)
        starts = []
        for path in paths:
            spot = self._take(model.shape(path)[0], rank) if path in mine else None
            starts.append(spot)
            if spot:
                self.named[f"{_PREFIX}{path}.lora_B.weight"] = spot
        columns = [mine.index(path) * rank if path in mine else 0 for path in paths]
        places = tuple(slice(at, at + rank) for at in columns)
        a = (first, (len(mine) * rank, in_features))
        self.groups[paths] = _Group(a, tuple(starts), places)

    def _take(self, rows: int, columns: int) -> tuple[int, tuple[int, int]]:
        spot = (self.size, (rows, columns))
        self.size += rows * columns
        return spot

    def matrices(self, row_P: Tensor) -> dict[Paths, Matrices]:
        return {
            paths: Matrices(
                _view(row_P, group.a),
                tuple(None if spot is None else _view(row_P, spot) for spot in group.b),
                group.places,
            )
            for paths, group in self.groups.items()
        }

    def tensors(self, row_P: Tensor) -> dict[str, Tensor]:
        """By PEFT's names, in a fixed order."""
        return {name: _view(row_P, spot) for name, spot in self.named.items()}


def _view(row_P: Tensor, spot: tuple[int, tuple[int, int]]) -> Tensor:
    start, (rows, columns) = spot
    return row_P[start : start + rows * columns].view(rows, columns)


class Gradient:
    """What one request teaches an adapter, as a flat row [P] that its parts are written to."""

    def __init__(self, adapter: "Adapter") -> None:
        self.row = torch.empty_like(adapter.row)
        self._matrices = adapter.layout.matrices(self.row)
        self._begun: set[Paths] = set()

    def clear(self) -> None:
        self._begun.clear()

    def add(self, paths: Paths, a: Tensor, b: Sequence[Tensor | None]) -> None:
        """One pass's gradient of a group's matrices, where the adapter has them."""
        held = self._matrices[paths]
        fresh = paths not in self._begun
        self._begun.add(paths)
        for into, part in zip((held.a, *held.b), (a, *b), strict=True):
            if into is None or part is None:
                continue
            if fresh:
                into.copy_(part)
            else:
                into.add_(part)

    def finish(self) -> Tensor:
        """The row, zero where no pass wrote."""
        for paths in self._matrices.keys() - self._begun:
            held = self._matrices[paths]
            for part in (held.a, *held.b):
                if part is not None:
                    part.zero_()
        return self.row


class Adapter:
    """`row`: all weights, fp32 [P]."""

    def __init__(
        self, model: Shapes, rank: int, trains: Mapping[str, bool], row: Tensor | None = None
    ) -> None:
        self.rank, self.trains = rank, dict(trains)
        self.scale = ALPHA / rank
        self.layout = Layout(model, rank, trains)
        if not self.layout.size:
            raise InvalidInput(
                "lora_config: nothing to train; set one of train_attn, train_mlp, train_unembed."
            )
        self.row = torch.zeros(self.layout.size, device=model.device) if row is None else row
        self._working: dict[torch.dtype, dict[Paths, Matrices]] = {}
        self._largest: float | None = None

    @classmethod
    def create(
        cls,
        model: Shapes,
        *,
        rank: int,
        seed: int,
        train_attn: bool = True,
        train_mlp: bool = True,
        train_unembed: bool = True,
    ) -> Self:
        """The seed alone decides A: its generator is the adapter's own, on the CPU."""
        if rank < 1:
            raise InvalidInput(f"lora_config.rank: {rank} is not at least 1.")
        made = cls(model, rank, {"attn": train_attn, "mlp": train_mlp, "unembed": train_unembed})
        generator = torch.Generator().manual_seed(seed)
        for name, weight in made.parameters().items():
            if name.endswith(".lora_A.weight"):
                bound = math.sqrt(1 / weight.shape[1])  # kaiming_uniform with a = sqrt(5)
                weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))
        return made

    @classmethod
    def from_tensors(
        cls, model: Shapes, rank: int, trains: Mapping[str, bool], tensors: Mapping[str, Tensor]
    ) -> Self:
        """The inverse of `parameters`; refuses tensors of another model's shape."""
        made = cls(model, rank, trains)
        for name, weight in made.parameters().items():
            if name not in tensors or tensors[name].shape != weight.shape:
                shape = list(weight.shape)
                raise InvalidInput(f"path: {name} is missing or not of shape {shape}.")
            weight.copy_(tensors[name])
        return made

    def touches(self, paths: Paths) -> bool:
        return paths in self.layout.groups

    def weights(self, paths: Paths, dtype: torch.dtype) -> Matrices:
        """One group's matrices in the dtype that the base model computes in."""
        if dtype not in self._working:
            self._working[dtype] = self.layout.matrices(self.row.to(dtype))
        return self._working[dtype][paths]

    def changed(self) -> None:
        """Call after writing to `row`: what was made of it is stale."""
        self._working.clear()
        self._largest = None

    @property
    def largest(self) -> float:
        """The largest weight's size; nan where there is one."""
        if self._largest is None:
            self._largest = float(self.row.abs().max())
        return self._largest

    def frozen(self) -> "Adapter":
        """A copy that training on leaves alone."""
        twin = self.with_row(self.row.clone())
        twin._largest = self._largest
        return twin

    def with_row(self, row_P: Tensor) -> "Adapter":
        """The same maps with other numbers, which it shares."""
        twin = object.__new__(type(self))
        twin.__dict__ |= self.__dict__ | {"row": row_P, "_working": {}, "_largest": None}
        return twin

    def parameters(self) -> dict[str, Tensor]:
        """By PEFT's names, in a fixed order: views into the row."""
        return self.layout.tensors(self.row)

    def peft_config(self, base_model: str) -> dict[str, Any]:
        paths = {name.removeprefix(_PREFIX).rsplit(".", 2)[0] for name in self.layout.named}
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "r": self.rank,
            "lora_alpha": ALPHA,
            "lora_dropout": 0.0,
            "bias": "none",
            "inference_mode": True,
            "target_modules": sorted({path.rsplit(".", 1)[-1] for path in paths}),
        }
