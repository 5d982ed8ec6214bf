"""The divergence over plain Tinker calls, for a service without a loss of its own for it.

Top-K tokens and a tail stand for the vocabulary: teacher and student score the same few ids, and a
custom loss in this process makes the gradient. It is exact on that support (docs/distillation.md).

Legend: N targets of a datum, K tokens of its support.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tinsmith.distill.connection import types_of
from tinsmith.distill.divergence import divergence
from tinsmith.distill.policy import log_ratios, ratio_metrics
from tinsmith.distill.rollout import Rollout, token_weights
from tinsmith.distill.signals import Metrics, Sent
from tinsmith.distill.teachers import Staff, Student

PLAIN_TOP_K = 20
"""Of a method that asks for the whole vocabulary: Rethinking OPD (2604.13016) finds 97 to 99 % of the
mass on so few."""
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Support:
    """Which tokens count at each completion token [T, K]; what the teacher says of them."""

    tokens: Ints
    there: npt.NDArray[np.bool_]
    teacher: npt.NDArray[np.float32]


class PlainDivergence:
    def __init__(
        self,
        run: Any,
        student: Student,
        staff: Staff,
        *,
        beta: float,
        temperature: float,
        top_k: int,
        tail: bool,
        support: str = "auto",
        reduction: str = "mean",
        skip_tokens: int = 0,
        is_clip: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        if temperature != 1 and tail:
            raise ValueError(
                f"temperature: this service has no x_distill_jsd, and the mass outside the top tokens is "
                f"known at temperature 1 only, not at {temperature:g}; use temperature=1 or tail=False."
            )
        self._run, self._student, self._staff = run, student, staff
        self._beta, self._temperature, self._tail = beta, temperature, tail
        self._top_k = top_k or PLAIN_TOP_K
        self._wanted = support if support != "auto" else _support(beta)
        self._reduction, self._skip, self._is_clip = reduction, skip_tokens, is_clip
        self._scale = scale
        rest = " and a tail" if tail else ", renormalised"
        self.words = f"plain Tinker calls and a custom loss, over the top {self._top_k}{rest}"

    def send(self, rollouts: Sequence[Rollout], sampler: Any) -> Sent:
        supports = self._supports(rollouts, sampler)
        weights = token_weights(rollouts, self._reduction, self._skip)
        data = [
            _datum(self._student.types, one, found)
            for one, found in zip(rollouts, supports, strict=True)
        ]
        loss = _Loss(self, rollouts, supports, weights)
        future = self._run.forward_backward_custom(data, loss)
        return Sent([future], _metrics)

    def look(self, rollouts: Sequence[Rollout], sampler: Any) -> Sent:
        """The sampled estimate of the reverse KL: a custom loss has no forward-only form."""
        ratios = log_ratios(rollouts, self._student, self._staff, sampler)
        return Sent([], lambda _: {}, ratio_metrics(ratios))

    def _supports(self, rollouts: Sequence[Rollout], sampler: Any) -> list[Support]:
        teachers = [self._staff[one.teacher].sampler(sampler) for one in rollouts]
        sequences = [self._sequence(one) for one in rollouts]
        asked: list[list[Any]] = []
        if self._wanted in ("teacher", "union"):
            asked.append(
                [_top(c, s, self._top_k) for c, s in zip(teachers, sequences, strict=True)]
            )
        if self._wanted in ("student", "union"):
            asked.append([_top(sampler, one.tokens, self._top_k) for one in rollouts])
        tokens = [
            _union([_top_tokens(one.result(), len(rollout.completion)) for one in answers])
            for rollout, *answers in zip(rollouts, *asked, strict=True)
        ]
        scored = [
            _score(client, sequence, found)
            for client, sequence, found in zip(teachers, sequences, tokens, strict=True)
        ]
        return [
            Support(found, found >= 0, _scores(future.result(), found))
            for found, future in zip(tokens, scored, strict=True)
        ]

    def _sequence(self, rollout: Rollout) -> list[int]:
        member = self._staff[rollout.teacher]
        if not member.same_tokens:
            raise ValueError(
                f"teacher: {member.teacher.name} has another tokenizer than the student; use GOLD or OPD."
            )
        return member.sequence(rollout)


class _Loss:
    """What the client differentiates: the datums' logprobs [N, K] in, one number out."""

    def __init__(
        self,
        signal: PlainDivergence,
        rollouts: Sequence[Rollout],
        supports: Sequence[Support],
        weights: Sequence[Any],
    ) -> None:
        self._signal, self._rollouts = signal, rollouts
        self._supports, self._weights = supports, weights

    def __call__(self, data: list[Any], logprobs: list[Any]) -> tuple[Any, dict[str, float]]:
        import torch

        loss, summed, count = torch.zeros(()), 0.0, 0.0
        for rollout, support, weights, lp_NK in zip(
            self._rollouts, self._supports, self._weights, logprobs, strict=True
        ):
            start = len(rollout.prompt) - 1
            weight = torch.from_numpy(weights[start:])
            found = self._rows(support, lp_NK[start:])
            scored = weight != 0
            summed += float(found.detach()[scored].sum())
            count += float(scored.sum())
            loss = loss + (weight * self._importance(rollout, lp_NK[start:]) * found).sum()
        return loss * self._signal._scale, {"distill/divergence": summed, "distill/tokens": count}

    def _rows(self, support: Support, lp_TK: Any) -> Any:
        import torch

        signal, k = self._signal, support.tokens.shape[1]
        there, lq = torch.from_numpy(support.there), torch.from_numpy(support.teacher)
        tau = signal._temperature
        return divergence(lp_TK[:, :k] / tau, lq / tau, there, signal._beta, signal._tail)

    def _importance(self, rollout: Rollout, lp_TK: Any) -> Any:
        """min(p now / p when sampled, clip) of the sampled token, which stands last in every row."""
        if not self._signal._is_clip:
            return 1.0
        import torch

        if rollout.logprobs is None:
            raise ValueError("batch: importance weights need what the student itself sampled.")
        old = torch.tensor(rollout.logprobs)
        ratio = (lp_TK[:, -1].detach() - old).clamp(-20, 20).exp()
        return ratio.clamp(max=self._signal._is_clip)


def _metrics(outputs: list[Any]) -> Metrics:
    """One custom loss gives its metrics whole."""
    found = outputs[0].metrics
    return {"divergence": found["distill/divergence"] / max(1.0, found["distill/tokens"])}


def _support(beta: float) -> str:
    """GKD's rule: those that the first argument of the divergence puts its mass on."""
    return {0.0: "teacher", 1.0: "student"}.get(float(beta), "union")


def _top(client: Any, tokens: Sequence[int], top_k: int) -> Any:
    types = types_of(client)
    return client.sample(
        types.ModelInput.from_ints(list(tokens)),
        1,
        types.SamplingParams(max_tokens=1),
        include_prompt_logprobs=True,
        topk_prompt_logprobs=top_k,
    )


def _top_tokens(answer: Any, count: int) -> list[list[int]]:
    rows = answer.topk_prompt_logprobs[-count:]
    return [[token for token, _ in row or ()] for row in rows]


def _union(parts: Sequence[list[list[int]]]) -> Ints:
    """Without repetition, in order; -1 fills the short rows."""
    rows = [list(dict.fromkeys(itertools.chain(*row))) for row in zip(*parts, strict=True)]
    width = max(len(row) for row in rows)
    return np.array([row + [-1] * (width - len(row)) for row in rows], np.int64)


def _score(client: Any, sequence: Sequence[int], tokens: Ints) -> Any:
    types = types_of(client)
    asked = np.full((len(sequence) - 1, tokens.shape[1]), -1, np.int64)
    asked[-len(tokens) :] = tokens
    return client.sample(
        types.ModelInput.from_ints(list(sequence)),
        1,
        types.SamplingParams(max_tokens=1),
        target_prompt_logprobs=types.TensorData.from_numpy(asked),
    )


def _scores(answer: Any, tokens: Ints) -> npt.NDArray[np.float32]:
    found = np.array(answer.target_prompt_logprobs.tolist(), np.float32)
    rows: npt.NDArray[np.float32] = found.reshape(-1, tokens.shape[1])[-len(tokens) :]
    return np.where(tokens >= 0, rows, np.float32(-100))


def _datum(types: Any, rollout: Rollout, support: Support) -> Any:
    """Targets [N, K + 1]: the support of every row, and the token that stands there."""
    tokens = rollout.tokens
    targets = np.zeros((len(tokens) - 1, support.tokens.shape[1] + 1), np.int64)
    targets[:, -1] = tokens[1:]
    targets[len(rollout.prompt) - 1 :, :-1] = np.maximum(support.tokens, 0)
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": targets},
    )
