"""Policy-gradient signals over plain Tinker calls: the teacher scores what the student said."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinsmith.distill.alignment import stretches
from tinsmith.distill.connection import types_of
from tinsmith.distill.returns import Floats
from tinsmith.distill.rollout import Rollout, column, token_weights
from tinsmith.distill.signals import Metrics, Sent, total
from tinsmith.distill.teachers import Staff, Student

Returns = Callable[[Floats], Floats]


class PolicySignal:
    """A[n] = coef * returns(r)[n], r = log q - log p by token, or by stretch between tokenizers."""

    def __init__(
        self,
        run: Any,
        student: Student,
        staff: Staff,
        *,
        loss: str = "importance_sampling",
        coef: float = 1.0,
        returns: Returns | None = None,
        baseline: bool = False,
        reduction: str = "sum",
    ) -> None:
        self._run, self._student, self._staff = run, student, staff
        self._loss, self._coef, self._baseline, self._reduction = loss, coef, baseline, reduction
        self._returns: Returns = returns or (lambda ratios: ratios)
        self.words = f"{loss} of the teacher's logprob of each sampled token (plain Tinker calls)"

    def send(self, rollouts: Sequence[Rollout], sampler: Any) -> Sent:
        ratios = log_ratios(rollouts, self._student, self._staff, sampler)
        data = self.data(rollouts, ratios)
        future = self._run.forward_backward(data, self._loss)
        known = ratio_metrics(ratios)
        return Sent([future], lambda outputs: {"loss": total(outputs, "loss:sum")}, known)

    def look(self, rollouts: Sequence[Rollout], sampler: Any) -> Sent:
        ratios = log_ratios(rollouts, self._student, self._staff, sampler)
        return Sent([], lambda _: {}, ratio_metrics(ratios))

    def data(self, rollouts: Sequence[Rollout], ratios: Sequence[Floats]) -> list[Any]:
        weights = token_weights(rollouts, self._reduction)
        advantages = [np.float32(self._coef) * self._returns(one) for one in ratios]
        mean = np.float32(np.concatenate(advantages).mean() if self._baseline else 0)
        return [
            policy_datum(self._student.types, rollout, advantage - mean, weight)
            for rollout, advantage, weight in zip(rollouts, advantages, weights, strict=True)
        ]


def policy_datum(types: Any, rollout: Rollout, advantages: Floats, weights: Floats) -> Any:
    if rollout.logprobs is None:
        raise ValueError("batch: a policy loss needs what the student itself sampled.")
    tokens = rollout.tokens
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": np.array(tokens[1:], np.int64),
            "logprobs": column(rollout, rollout.logprobs),
            "advantages": column(rollout, advantages) * weights,
        },
    )


def log_ratios(
    rollouts: Sequence[Rollout],
    student: Student,
    staff: Staff,
    sampler: Any,
) -> list[Floats]:
    """log q - log p of every completion token [T]. All requests leave before the first is awaited."""
    clients = [staff[one.teacher].sampler(sampler) for one in rollouts]
    futures = [
        client.compute_logprobs(
            types_of(client).ModelInput.from_ints(staff[one.teacher].scorable(one))
        )
        for client, one in zip(clients, rollouts, strict=True)
    ]
    return [
        _ratios(rollout, student, staff, future.result())
        for rollout, future in zip(rollouts, futures, strict=True)
    ]


def _ratios(
    rollout: Rollout,
    student: Student,
    staff: Staff,
    scored: Sequence[float | None],
) -> Floats:
    if rollout.logprobs is None:
        raise ValueError("batch: log-ratios need what the student itself sampled.")
    member = staff[rollout.teacher]
    ours = np.array(rollout.logprobs, np.float32)
    completion = member.completion_tokens(rollout)
    start = len(member.sequence(rollout)) - len(completion)
    theirs = np.array([one or 0.0 for one in scored[start:]], np.float32)
    if member.same_tokens:
        found = np.zeros_like(ours)
        found[: theirs.size] = theirs - ours[: theirs.size]
        return found
    return by_stretch(rollout, completion, student, member.renderer.tokenizer, ours, theirs)


def by_stretch(
    rollout: Rollout,
    completion: Sequence[int],
    student: Student,
    tokenizer: Any,
    ours: Floats,
    theirs: Floats,
) -> Floats:
    """r of a token is that of its stretch: sum log q - sum log p. 0 where nothing can be compared."""
    found = np.zeros_like(ours)
    pairs = stretches(student.tokenizer, rollout.completion, tokenizer, completion)
    for here, there in pairs:
        if there.stop > theirs.size:  # beyond what the teacher can read
            break
        found[here.start : here.stop] = (
            theirs[there.start : there.stop].sum() - ours[here.start : here.stop].sum()
        )
    return found


def ratio_metrics(ratios: Sequence[Floats]) -> Metrics:
    """The sampled estimate of the reverse KL, in nats a token."""
    flat = np.concatenate(ratios)
    return {"sampled_kl": -float(flat.mean())}
