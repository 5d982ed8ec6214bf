"""From logits to tokens: temperature, top-k, top-p, and randomness that depends on nothing else.

A draw needs one uniform number. It comes from a counter hash of (seed, sample, position), so the same
request gives the same tokens alone or in company, on any worker, and again after a crash.

Legend: S samples, V vocabulary, C columns of a span.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tinsmith_worker.engine.elementwise import logsumexp

_MASK = (1 << 64) - 1
_SPAN = 256
_WINDOW = 1024
"""How many of the likeliest tokens top-p looks at before it sorts the whole vocabulary."""
_COLDEST = 1e-30
"""Logits divided by less than this overflow; long before, one token has all the probability."""


@dataclass(frozen=True)
class Draw:
    """How one sample's next token is chosen; `u` is uniform in [0, 1)."""

    temperature: float
    top_k: int
    top_p: float
    u: float

    @property
    def plain(self) -> bool:
        return self.temperature > 0 and self.top_k <= 0 and self.top_p >= 1.0


def uniform(seed: int, sample: int, position: int) -> float:
    """In [0, 1), by three rounds of splitmix64 (Steele et al. 2014)."""
    state = 0
    for word in (seed, sample, position):
        state = _mix((state ^ (word & _MASK)) & _MASK)
    return (state >> 11) / float(1 << 53)


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def draw(logits_SV: Tensor, draws: Sequence[Draw]) -> tuple[list[int], list[float], Tensor]:
    """A token each, its log-probability under the temperature alone, and all of them [S, V]."""
    temperatures = [max(one.temperature, _COLDEST) if one.temperature else 1.0 for one in draws]
    scaled_SV = logits_SV
    if any(one != 1.0 for one in temperatures):
        scaled_SV = logits_SV / logits_SV.new_tensor(temperatures)[:, None]
    logprobs_SV = scaled_SV - logsumexp(scaled_SV)[:, None]
    tokens = torch.zeros(len(draws), dtype=torch.int64, device=logits_SV.device)
    plain = [place for place, one in enumerate(draws) if one.plain]
    if plain:
        rows = slice(None) if len(plain) == len(draws) else plain
        # In fp32 the largest u would be 1, which is nobody's.
        us = [draws[place].u for place in plain]
        u_S = torch.tensor(us, dtype=torch.float64, device=tokens.device)
        tokens[rows] = _invert(logprobs_SV[rows], u_S)
    for place, one in enumerate(draws):
        if one.temperature == 0:
            tokens[place] = logits_SV[place].argmax()
        elif not one.plain:
            tokens[place] = _restricted(logprobs_SV[place], one)
    found = logprobs_SV.gather(1, tokens[:, None])[:, 0]
    return tokens.tolist(), found.tolist(), logprobs_SV


def _invert(logprobs_SV: Tensor, u_S: Tensor) -> Tensor:
    """The token at which the cumulated probability passes u of its total: span first, then within."""
    spare = -logprobs_SV.shape[1] % _SPAN
    probs_SV = F.pad(logprobs_SV.exp(), (0, spare)) if spare else logprobs_SV.exp()
    spans = probs_SV.view(probs_SV.shape[0], -1, _SPAN)
    ends = spans.sum(-1, dtype=torch.float64).cumsum(-1)
    goal_S1 = u_S[:, None] * ends[:, -1:]
    span_S1 = torch.searchsorted(ends, goal_S1, right=True).clamp_(max=ends.shape[1] - 1)
    begin_S1 = torch.where(span_S1 > 0, ends.gather(1, (span_S1 - 1).clamp_(min=0)), 0.0)
    inside_SC = spans[torch.arange(len(u_S), device=u_S.device), span_S1[:, 0]].double().cumsum(-1)
    step_S1 = torch.searchsorted(inside_SC, goal_S1 - begin_S1, right=True)
    last_S1 = _last_possible(spans, span_S1)
    return torch.minimum(span_S1 * _SPAN + step_S1, last_S1)[:, 0]


def _last_possible(spans: Tensor, span_S1: Tensor) -> Tensor:
    """The chosen span's last token of any probability: rounding must not step onto an impossible one."""
    chosen_SC = spans[torch.arange(len(span_S1), device=spans.device), span_S1[:, 0]]
    columns = torch.arange(_SPAN, device=spans.device)
    inside = torch.where(chosen_SC > 0, columns, 0).amax(-1, keepdim=True)
    return span_S1 * _SPAN + inside


def _restricted(logprobs_V: Tensor, one: Draw) -> int:
    """Within the top k, and the smallest set whose mass reaches top_p; never fewer than one token."""
    size = logprobs_V.numel()
    count = min(one.top_k, size) if one.top_k > 0 else size
    best, ids = logprobs_V.topk(min(count, _WINDOW))
    # With a top k, the mass is that of the k; without, that of all: 1.
    whole = best.double().exp().sum() if one.top_k > 0 and count <= _WINDOW else None
    cumulated = best.double().exp().cumsum(-1)
    if whole is not None:
        cumulated = cumulated / whole
    if count > _WINDOW and (one.top_k > 0 or cumulated[-1] < one.top_p):
        best, ids = logprobs_V.topk(count)
        cumulated = best.double().softmax(-1).cumsum(-1)
    kept = 1 + int((cumulated < one.top_p).sum()) if one.top_p < 1.0 else count
    allowed = cumulated[: min(kept, cumulated.numel())]
    place = int(torch.searchsorted(allowed, one.u * allowed[-1], right=True))
    return int(ids[min(place, allowed.numel() - 1)])
