"""One packed pass: the tokens of many sequences back to back, no padding anywhere.

Training, prefill and decode are the same pass. What differs is only where a sequence's first token
stands and whether earlier keys and values are at hand; the attention below reads both from the
current `Pass`, so each sequence attends to itself alone and its numbers do not depend on company.

Legend: N tokens of the pass, H query heads, G key/value heads, D head size, S keys of one sequence.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

if TYPE_CHECKING:
    from tinsmith_worker.engine.adapter import Adapter

ATTENTION = "tinsmith_packed"
# Below a few rows the matrix library picks other kernels, and with them other roundings.
MIN_ROWS = 32
HEAD_ROWS = 256  # rows of logits held at a time


class KVCache:
    """Keys and values of one sequence, layer by layer, in buffers that double when full."""

    def __init__(self) -> None:
        self.length = 0
        self._layers: dict[int, Tensor] = {}

    def extend(self, layer: int, key_GND: Tensor, value_GND: Tensor) -> tuple[Tensor, Tensor]:
        """Append; answers all keys and values so far, [G, S, D] each."""
        end = self.length + key_GND.shape[1]
        buffer = self._layers.get(layer)
        if buffer is None or buffer.shape[2] < end:
            groups, _, size = key_GND.shape
            room = key_GND.new_empty(2, groups, max(64, 2 * end), size)
            if buffer is not None:
                room[:, :, : self.length] = buffer[:, :, : self.length]
            self._layers[layer] = buffer = room
        buffer[0, :, self.length : end] = key_GND
        buffer[1, :, self.length : end] = value_GND
        return buffer[0, :, :end], buffer[1, :, :end]

    def copy(self) -> "KVCache":
        """For the next sample of the same prompt."""
        twin = KVCache()
        twin.length = self.length
        twin._layers = {layer: buffer.clone() for layer, buffer in self._layers.items()}
        return twin


@dataclass(frozen=True)
class Segment:
    """One sequence's rows of the pass."""

    tokens: Sequence[int]
    adapter: "Adapter | None" = None
    cache: KVCache | None = None

    @property
    def first_position(self) -> int:
        return self.cache.length if self.cache else 0


@dataclass
class Pass:
    """The rows of each sequence and of each adapter, while the model runs."""

    segments: Sequence[Segment]
    rows: list[slice] = field(default_factory=list)
    adapter_rows: list[tuple[slice, "Adapter"]] = field(default_factory=list)

    def __post_init__(self) -> None:
        start = 0
        for segment in self.segments:
            end = start + len(segment.tokens)
            self.rows.append(slice(start, end))
            if segment.adapter is not None:
                last = self.adapter_rows[-1] if self.adapter_rows else None
                if last and last[1] is segment.adapter and last[0].stop == start:
                    self.adapter_rows[-1] = (slice(last[0].start, end), segment.adapter)
                else:
                    self.adapter_rows.append((slice(start, end), segment.adapter))
            start = end


def enough_rows(segments: list[Segment]) -> list[Segment]:
    """The segments, and behind them what is missing to MIN_ROWS."""
    spare = MIN_ROWS - sum(len(segment.tokens) for segment in segments)
    return [*segments, Segment([0] * spare)] if spare > 0 else segments


def adapter_rows(adapters: "Sequence[Adapter | None]") -> "list[tuple[slice, Adapter]]":
    """The adapter of each row as slices of neighbours that share one."""
    rows: list[tuple[slice, Adapter]] = []
    for place, adapter in enumerate(adapters):
        if adapter is None:
            continue
        if rows and rows[-1][1] is adapter and rows[-1][0].stop == place:
            rows[-1] = (slice(rows[-1][0].start, place + 1), adapter)
        else:
            rows.append((slice(place, place + 1), adapter))
    return rows


_PASS: ContextVar[Pass] = ContextVar("pass")
_ADAPTER_ROWS: ContextVar["Sequence[tuple[slice, Adapter]]"] = ContextVar("rows", default=())


@contextmanager
def running(current: Pass) -> Iterator[None]:
    """The model's own modules find the pass here; transformers' signatures have no room for it."""
    token = _PASS.set(current)
    try:
        with adapters_on(current.adapter_rows):
            yield
    finally:
        _PASS.reset(token)


@contextmanager
def adapters_on(rows: "Sequence[tuple[slice, Adapter]]") -> Iterator[None]:
    token = _ADAPTER_ROWS.set(rows)
    try:
        yield
    finally:
        _ADAPTER_ROWS.reset(token)


class LoRALinear(nn.Module):
    """A frozen linear map, plus `scale * (x A^T) B^T` on the rows of each adapter (Hu et al. 2021)."""

    def __init__(self, base: nn.Linear, path: str) -> None:
        super().__init__()
        self.base, self.path = base, path

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        deltas: list[Tensor] = []
        covered = 0
        for rows, adapter in _ADAPTER_ROWS.get():
            pair = adapter.pairs.get(self.path)
            if pair is None:
                continue
            if rows.start > covered:
                deltas.append(y.new_zeros(*y.shape[:-2], rows.start - covered, y.shape[-1]))
            a, b = (weight.to(x.dtype) for weight in pair)
            deltas.append(F.linear(F.linear(x[..., rows, :], a), b) * adapter.scale)
            covered = rows.stop
        if not deltas:
            return y
        if covered < y.shape[-2]:
            deltas.append(y.new_zeros(*y.shape[:-2], y.shape[-2] - covered, y.shape[-1]))
        return y + (deltas[0] if len(deltas) == 1 else torch.cat(deltas, dim=-2))


def packed_attention(
    module: nn.Module,
    query_1HND: Tensor,
    key_1GND: Tensor,
    value_1GND: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Transformers' attention interface: every sequence of the pass by itself, causal."""
    segments = _PASS.get().segments
    sizes = [len(segment.tokens) for segment in segments]
    # Split, not sliced: the gradient of each slice would be a whole tensor of zeros.
    parts = (torch.split(one[0], sizes, 1) for one in (query_1HND, key_1GND, value_1GND))
    outputs = []
    for segment, query, key, value in zip(segments, *parts, strict=True):
        if segment.cache is not None:
            key, value = segment.cache.extend(int(module.layer_idx), key, value)  # type: ignore[arg-type]
        outputs.append(attend(query, key, value, scaling, sliding_window, softcap))
    return torch.cat(outputs, dim=1).transpose(0, 1).unsqueeze(0), None


def attend(
    query_HND: Tensor,
    key_GSD: Tensor,
    value_GSD: Tensor,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Causal attention of the last N of S positions."""
    count, total = query_HND.shape[1], key_GSD.shape[1]
    if softcap is not None:
        raise NotImplementedError("attention softcaps")
    inside = window is None or total <= window
    mask = None if inside and count in (1, total) else _mask(count, total, window, query_HND.device)
    attended: Tensor = F.scaled_dot_product_attention(
        query_HND.unsqueeze(0),
        key_GSD.unsqueeze(0),
        value_GSD.unsqueeze(0),
        attn_mask=mask,
        is_causal=mask is None and count > 1,
        scale=scaling,
        enable_gqa=query_HND.shape[0] != key_GSD.shape[0],
    )
    return attended[0]


def _mask(count: int, total: int, window: int | None, device: torch.device) -> Tensor:
    query = torch.arange(total - count, total, device=device)[:, None]
    key = torch.arange(total, device=device)
    seen = key <= query
    return seen if window is None else seen & (query - key < window)


AttentionInterface.register(ATTENTION, packed_attention)
