"""From logits to one token: temperature, top-k, top-p, and randomness that depends on nothing else.

A draw needs one uniform number. It comes from a counter hash of (seed, sample, position), so the same
request gives the same tokens alone or in company, on any worker, and again after a crash.

Legend: V vocabulary.
"""

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


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


def draw(
    logits_V: Tensor, temperature: float, top_k: int, top_p: float, u: float
) -> tuple[int, float]:
    """A token and its log-probability under the temperature alone, before top-k and top-p."""
    if temperature == 0.0:
        token = int(logits_V.argmax())
        return token, float(logits_V.log_softmax(-1)[token])
    logprobs_V = (logits_V / temperature).log_softmax(-1)
    token = _invert(logprobs_V, top_k, top_p, u)
    return token, float(logprobs_V[token])


def _invert(logprobs_V: Tensor, top_k: int, top_p: float, u: float) -> int:
    """The token at which the cumulated probability of those allowed passes u of its total."""
    if top_k <= 0 and top_p >= 1.0:
        return _at(logprobs_V.double().exp().cumsum(-1), u)
    count = min(top_k, logprobs_V.numel()) if top_k > 0 else logprobs_V.numel()
    best, ids = logprobs_V.topk(count)
    cumulated = best.double().softmax(-1).cumsum(-1)
    # The smallest set whose mass reaches top_p, and never fewer than one token.
    kept = 1 + int((cumulated < top_p).sum()) if top_p < 1.0 else count
    return int(ids[_at(cumulated[: min(kept, count)], u)])


def _at(cumulated: Tensor, u: float) -> int:
    index = int(torch.searchsorted(cumulated, u * cumulated[-1], right=True))
    return min(index, cumulated.numel() - 1)
