"""Signals that the service computes itself: the teacher's whole distribution, and none of it on the wire."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tinsmith.distill.rollout import Rollout, column, token_weights
from tinsmith.distill.signals import Metrics, Sent, total
from tinsmith.distill.teachers import Staff, Student

Config = Mapping[str, float | str]


class ServedSignal:
    """One loss of the service's own, with one config for the run."""

    def __init__(
        self,
        run: Any,
        student: Student,
        staff: Staff,
        loss: str,
        config: Config,
        *,
        reduction: str = "mean",
        skip_tokens: int = 0,
        with_logprobs: bool = False,
        scale: float = 1.0,
    ) -> None:
        self._run, self._student, self._staff, self._loss = run, student, staff, loss
        self._config = {"teacher": staff.spelled, **config}
        self._reduction, self._skip, self._scale = reduction, skip_tokens, scale
        self._with_logprobs = with_logprobs
        self._reads_behind = config.get("merge") == "observed"
        self.words = f"{loss} on the service, {_support(loss, config)}"

    def send(self, rollouts: Sequence[Rollout], sampler: Any) -> Sent:
        future = self._run.forward_backward(self.data(rollouts), self._loss, self._config)
        return Sent([future], served_metrics)

    def look(self, rollouts: Sequence[Rollout], sampler: Any) -> Sent:
        future = self._run.forward(self.data(rollouts), self._loss, self._config)
        return Sent([future], served_metrics)

    def data(self, rollouts: Sequence[Rollout]) -> list[Any]:
        weights = token_weights(rollouts, self._reduction, self._skip)
        return [
            self._datum(rollout, weight * np.float32(self._scale))
            for rollout, weight in zip(rollouts, weights, strict=True)
        ]

    def _datum(self, rollout: Rollout, weights: Any) -> Any:
        types, member = self._student.types, self._staff[rollout.teacher]
        tokens = rollout.tokens
        if self._reads_behind:  # a token more, which is not scored
            tokens = [*tokens, tokens[-1]]
            weights = np.append(weights, np.float32(0))
        inputs: dict[str, Any] = {
            "target_tokens": np.array(tokens[1:], np.int64),
            "weights": weights,
        }
        apart = rollout.teacher_prompt is not None or not member.same_tokens
        if apart or self._loss == "x_distill_uld":  # which compares texts, whoever spells them
            inputs["teacher_tokens"] = np.array(member.sequence(rollout), np.int64)
        if self._loss == "x_distill_uld" and (ranges := member.align(rollout)) is not None:
            inputs["align"] = np.array(ranges, np.int64).reshape(-1, 4)
        if len(self._staff.members) > 1:
            inputs["teacher_index"] = np.array([rollout.teacher], np.int64)
        if self._with_logprobs:
            inputs["logprobs"] = column(rollout, _sampled(rollout))
        return types.Datum(
            model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs
        )


def _sampled(rollout: Rollout) -> list[float]:
    if rollout.logprobs is None:
        raise ValueError("batch: importance weights need what the student itself sampled.")
    return rollout.logprobs


def served_metrics(outputs: list[Any]) -> Metrics:
    """Sums as means a token, where the service says how many tokens there were."""
    found = {"loss": total(outputs, "loss:sum")}
    tokens = total(outputs, "distill/tokens:sum")
    for name in ("divergence", "entropy", "teacher_entropy"):
        key = f"distill/{name}:sum"
        if tokens and any(key in output.metrics for output in outputs):
            found[name] = total(outputs, key) / tokens
    return found


def _support(loss: str, config: Config) -> str:
    if loss == "x_distill_uld":
        return "by stretch of text" if config["mode"] == "gold" else "by position"
    top_k = int(float(config.get("top_k", 0)))
    if not top_k:
        return "over the whole vocabulary"
    return f"over the top {top_k}" + (" and a tail" if config.get("tail", 1.0) else "")
