"""The generalised Jensen-Shannon divergence over a few tokens and a tail, from their logprobs.

For services that give no more than logprobs of named tokens. Legend: N rows, K tokens of the support.
"""

import math
from typing import Any

_NOWHERE = -100.0  # exp of it is 0 in float32, and it has no gradient to spoil


def divergence(lp_NK: Any, lq_NK: Any, there_NK: Any, beta: float, tail: bool) -> Any:
    """D_beta of every row [N], in nats; gradient flows through lp only.

    The tail is log(1 - sum), as in TRL's `_add_tail_bucket`; without it both are renormalised.
    """
    import torch

    lp, lq = _completed(lp_NK, there_NK, tail), _completed(lq_NK, there_NK, tail)
    if beta == 0:
        return (lq.exp() * (lq - lp)).sum(-1)
    if beta == 1:
        return (lp.exp() * (lp - lq)).sum(-1)
    lm = torch.logaddexp(lp + math.log1p(-beta), lq + math.log(beta))
    teacher, student = (lq.exp() * (lq - lm)).sum(-1), (lp.exp() * (lp - lm)).sum(-1)
    return beta * teacher + (1 - beta) * student


def _completed(logprobs_NK: Any, there_NK: Any, tail: bool) -> Any:
    import torch

    masked = torch.where(there_NK, logprobs_NK, _NOWHERE)
    mass = torch.logsumexp(masked, -1, keepdim=True)
    if not tail:
        return torch.where(there_NK, masked - mass, _NOWHERE)
    rest = torch.log(-torch.expm1(mass.clamp(max=-1e-7)))
    return torch.cat([masked, rest], -1)
