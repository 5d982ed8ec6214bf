"""One packed pass: the tokens of many sequences back to back, no padding anywhere.

Training, prefill and decode are the same pass. What differs is only where a sequence's first token
stands and where its earlier keys and values are: in the pool, in the same pass, or nowhere.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from tinsmith_worker.engine.kv_pool import KVCache

if TYPE_CHECKING:
    from tinsmith_worker.engine.adapter import Adapter, Gradient
    from tinsmith_worker.engine.adapter_mix import AdapterMixes, MixedRows
    from tinsmith_worker.engine.attention_plan import Plan


@dataclass(frozen=True, eq=False)
class Segment:
    """One sequence's rows of the pass."""

    tokens: Sequence[int]
    adapter: "Adapter | None" = None
    cache: KVCache | None = None
    """Earlier positions are there, and these will be."""
    after: "Segment | None" = None
    """A segment of the same pass, earlier in it, that this one continues: a prompt shared by a group."""
    gradient: "Gradient | None" = None
    """Where the backward pass puts what this segment teaches its adapter."""

    @property
    def first_position(self) -> int:
        if self.after is not None:
            return len(self.after.tokens)
        return self.cache.length if self.cache else 0


@dataclass(frozen=True)
class AdapterRows:
    """Neighbouring rows under one adapter, their gradient going to one place."""

    rows: slice
    adapter: "Adapter"
    gradient: "Gradient | None" = None


@dataclass
class Pass:
    """What a model runs over: segments, where their rows stand, and how many rows there must be."""

    segments: Sequence[Segment]
    min_rows: int = 1
    """Below a few rows a matrix library takes other kernels, and with them other roundings."""
    mixes: "AdapterMixes | None" = None
    dtype: torch.dtype = torch.float32
    checkpoint: bool = False
    """Keep each layer's input only, and compute the layer again for its gradient."""

    @cached_property
    def rows(self) -> list[slice]:
        made, start = [], 0
        for segment in self.segments:
            made.append(slice(start, start + len(segment.tokens)))
            start = made[-1].stop
        return made

    @cached_property
    def tokens(self) -> list[int]:
        found = [token for segment in self.segments for token in segment.tokens]
        return found + [0] * (self.min_rows - len(found))

    @cached_property
    def positions(self) -> list[int]:
        found = [
            segment.first_position + offset
            for segment in self.segments
            for offset in range(len(segment.tokens))
        ]
        return found + [0] * (len(self.tokens) - len(found))

    @cached_property
    def adapter_rows(self) -> list[AdapterRows]:
        owners = [(s.adapter, s.gradient) for s in self.segments]
        return merge_rows(owners, [len(s.tokens) for s in self.segments])

    @cached_property
    def mixed(self) -> "MixedRows | None":
        if self.mixes is None or torch.is_grad_enabled():
            return None
        return self.mixes.for_rows(self.adapter_rows, len(self.tokens), self.dtype)

    @cached_property
    def plan(self) -> "Plan":
        from tinsmith_worker.engine.attention_plan import Plan

        return Plan(self)

    def grow_caches(self) -> None:
        """After the last layer: the caches hold this pass's positions too."""
        for segment in self.segments:
            if segment.cache is not None:
                segment.cache.length += len(segment.tokens)


def merge_rows(
    owners: "Sequence[tuple[Adapter | None, Gradient | None]]", sizes: Sequence[int]
) -> list[AdapterRows]:
    """Slices of neighbours with one owner."""
    made: list[AdapterRows] = []
    start = 0
    for (adapter, gradient), size in zip(owners, sizes, strict=True):
        end = start + size
        last = made[-1] if made else None
        if adapter is not None:
            joins = last and last.rows.stop == start
            if last and joins and last.adapter is adapter and last.gradient is gradient:
                made[-1] = AdapterRows(slice(last.rows.start, end), adapter, gradient)
            else:
                made.append(AdapterRows(slice(start, end), adapter, gradient))
        start = end
    return made


_PASS: ContextVar[Pass] = ContextVar("pass")


@contextmanager
def running(current: Pass) -> Iterator[None]:
    """Transformers' modules find the pass here: their signatures have no room for it."""
    token = _PASS.set(current)
    try:
        yield
    finally:
        _PASS.reset(token)


def current_pass() -> Pass:
    return _PASS.get()
