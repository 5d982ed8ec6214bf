"""Divergences between two distributions over a vocabulary, row by row, with their gradient written out.

D_b(p, q) = b KL(q|m) + (1-b) KL(p|m) with m = (1-b) p + b q (GKD, 2306.13649, eq. 1), in nats; p is the
student's, q the teacher's. b = 0 means KL(q|p), b = 1 means KL(p|q): the limits of D_b / (b (1-b)),
not of D_b, which is 0 at both ends.

The gradient needs no graph over [R, V]: dD/dp = (1-b) log(p/m), and what the mixture adds cancels.

Legend: R rows, V vocabulary, K entries of a support.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tinsmith_worker.engine.elementwise import logsumexp

SUPPORTS = ("auto", "student", "teacher", "union", "sampled")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Which divergence, at which temperatures, over which tokens."""

    beta: float = 1.0
    temperature: float = 1.0
    teacher_temperature: float = 1.0
    top_k: int = 0
    """Tokens of each side that are compared; 0: all."""
    support: str = "auto"
    tail: bool = True
    """Whether the rest of the vocabulary counts as one more token, or is left out of the norm."""
    scale: float = 1.0
    """What divergence and gradient are multiplied with."""


@dataclass(frozen=True)
class Found:
    """Per row, [R]; the gradient with respect to the student's logits is [R, V]."""

    divergence: Tensor
    gradient: Tensor | None
    entropy: Tensor
    teacher_entropy: Tensor
    student_mass: Tensor
    """What the support holds of either side's probability."""
    teacher_mass: Tensor


def diverge(
    student_RV: Tensor,
    teacher_RV: Tensor,
    targets_R: Tensor,
    measure: Measure,
    *,
    gradient: bool = True,
) -> Found:
    """Of fp32 logits; they may differ in width where ids above the smaller one mean nothing.

    The targets matter to the support `sampled` alone.
    """
    width = min(student_RV.shape[1], teacher_RV.shape[1])
    lp_RV = _log_softmax(student_RV[:, :width], measure.temperature)
    lq_RV = _log_softmax(teacher_RV[:, :width], measure.teacher_temperature)
    p_RV, q_RV = lp_RV.exp(), lq_RV.exp()
    entropies = (-_dot(p_RV, lp_RV), -_dot(q_RV, lq_RV))
    if measure.top_k:
        ids_RK, kept_RK = _support(lp_RV, lq_RV, targets_R, measure)
        log_p_RK, log_q_RK = lp_RV.gather(1, ids_RK), lq_RV.gather(1, ids_RK)
        found_R, slope_RK = _sparse(log_p_RK, log_q_RK, kept_RK, measure)
        masses = [one.exp().mul(kept_RK).sum(1) for one in (log_p_RK, log_q_RK)]
        back_RV = p_RV.mul_(-slope_RK.sum(1, keepdim=True)).scatter_add_(1, ids_RK, slope_RK)
    else:
        found_R, back_RV = _full(lp_RV, lq_RV, p_RV, q_RV, measure.beta)
        masses = [torch.ones_like(found_R)] * 2
    if not gradient:
        return Found(found_R * measure.scale, None, *entropies, *masses)
    back_RV.mul_(measure.scale / measure.temperature)
    if width < student_RV.shape[1]:
        back_RV = torch.nn.functional.pad(back_RV, (0, student_RV.shape[1] - width))
    return Found(found_R * measure.scale, back_RV, *entropies, *masses)


def _log_softmax(logits_RV: Tensor, temperature: float) -> Tensor:
    scaled_RV = logits_RV.float() if temperature == 1 else logits_RV.float() / temperature
    return scaled_RV - logsumexp(scaled_RV)[:, None]


def _dot(one_RV: Tensor, other_RV: Tensor) -> Tensor:
    """Row by row, without their product in memory."""
    found_R: Tensor = torch.linalg.vecdot(one_RV, other_RV)
    return found_R


def _full(
    lp_RV: Tensor, lq_RV: Tensor, p_RV: Tensor, q_RV: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """Divergence, and its gradient with respect to the student's log-odds. Uses p's memory."""
    if beta == 0:
        return _dot(q_RV, lq_RV - lp_RV), p_RV.sub_(q_RV)
    if beta == 1:
        gap_RV = lp_RV - lq_RV
        found_R = _dot(p_RV, gap_RV)
        return found_R, p_RV.mul_(gap_RV.sub_(found_R[:, None]))
    lm_RV = torch.logaddexp(lp_RV + math.log1p(-beta), lq_RV + math.log(beta))
    teachers_R = _dot(q_RV, lq_RV - lm_RV)
    gap_RV = torch.sub(lp_RV, lm_RV, out=lm_RV)
    students_R = _dot(p_RV, gap_RV)
    back_RV = p_RV.mul_(gap_RV.sub_(students_R[:, None])).mul_(1 - beta)
    return beta * teachers_R + (1 - beta) * students_R, back_RV


def _support(
    lp_RV: Tensor, lq_RV: Tensor, targets_R: Tensor, measure: Measure
) -> tuple[Tensor, Tensor]:
    """Ids [R, K], and which of them count: one that is there twice counts once.

    auto: the teacher's at beta 0, the student's at 1, else both (TRL's IWOPDTrainer). sampled: the
    token that was sampled, and below beta 1 the teacher's first (TRL's ServerDistillationTrainer).
    """
    count = min(measure.top_k, lp_RV.shape[1])
    kind = measure.support
    if kind == "auto":
        kind = {0.0: "teacher", 1.0: "student"}.get(measure.beta, "union")
    if kind == "sampled":
        first = targets_R[:, None]
        second = None if measure.beta == 1 else lq_RV.argmax(1, keepdim=True)
    else:
        first = (lq_RV if kind == "teacher" else lp_RV).topk(count, 1).indices
        second = lq_RV.topk(count, 1).indices if kind == "union" else None
    if second is None:
        return first, torch.ones_like(first, dtype=torch.bool)
    fresh = (second[:, :, None] != first[:, None, :]).all(2)
    return torch.cat([first, second], 1), torch.cat(
        [torch.ones_like(first, dtype=torch.bool), fresh], 1
    )


def _sparse(
    lp_RK: Tensor, lq_RK: Tensor, kept_RK: Tensor, measure: Measure
) -> tuple[Tensor, Tensor]:
    """Divergence over the support, and its gradient with respect to the student's log p of it."""
    leaf_RK = lp_RK.detach().requires_grad_()
    with torch.enable_grad():
        log_p, there = _closed(leaf_RK, kept_RK, measure.tail)
        log_q, _ = _closed(lq_RK, kept_RK, measure.tail)
        p, q = log_p.exp() * there, log_q.exp() * there
        if measure.beta == 0:
            found_R = (q * (log_q - log_p)).sum(1)
        elif measure.beta == 1:
            found_R = (p * (log_p - log_q)).sum(1)
        else:
            beta = measure.beta
            log_m = torch.logaddexp(log_p + math.log1p(-beta), log_q + math.log(beta))
            found_R = (beta * q * (log_q - log_m) + (1 - beta) * p * (log_p - log_m)).sum(1)
        [slope_RK] = torch.autograd.grad(found_R.sum(), leaf_RK)
    return found_R.detach(), slope_RK


def _closed(lp_RK: Tensor, kept_RK: Tensor, tail: bool) -> tuple[Tensor, Tensor]:
    """A distribution again: with the rest as one more entry, or without it; and what of it counts."""
    total_R1 = lp_RK.masked_fill(~kept_RK, -math.inf).logsumexp(1, keepdim=True)
    if not tail:
        return (lp_RK - total_R1).masked_fill(~kept_RK, 0.0), kept_RK
    rest_R1 = torch.log(-torch.expm1(total_R1.clamp(max=-1e-7)))
    there = torch.cat([kept_RK, torch.ones_like(kept_RK[:, :1])], 1)
    return torch.cat([lp_RK.masked_fill(~kept_RK, 0.0), rest_R1], 1), there
