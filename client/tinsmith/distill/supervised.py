"""Cross-entropy on what the teacher said, or the data."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinsmith.distill.rollout import Rollout, token_weights
from tinsmith.distill.signals import Metrics, Sent, total
from tinsmith.distill.teachers import Student


class SupervisedSignal:
    words = "cross_entropy on the teacher's samples (plain Tinker calls)"

    def __init__(self, run: Any, student: Student, *, reduction: str = "mean") -> None:
        self._run, self._student, self._reduction = run, student, reduction

    def send(self, rollouts: Sequence[Rollout], sampler: Any) -> Sent:
        future = self._run.forward_backward(self.data(rollouts), "cross_entropy")
        return Sent([future], _metrics)

    def look(self, rollouts: Sequence[Rollout], sampler: Any) -> Sent:
        return Sent([self._run.forward(self.data(rollouts), "cross_entropy")], _metrics)

    def data(self, rollouts: Sequence[Rollout]) -> list[Any]:
        types = self._student.types
        return [
            types.Datum(
                model_input=types.ModelInput.from_ints(rollout.tokens[:-1]),
                loss_fn_inputs={
                    "target_tokens": np.array(rollout.tokens[1:], np.int64),
                    "weights": weights,
                },
            )
            for rollout, weights in zip(
                rollouts, token_weights(rollouts, self._reduction), strict=True
            )
        ]


def _metrics(outputs: list[Any]) -> Metrics:
    return {"loss": total(outputs, "loss:sum")}
