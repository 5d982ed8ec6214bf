"""What a batch of rollouts is trained with: requests sent to the service, and their metrics when they land."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tinsmith.distill.rollout import Rollout

Metrics = dict[str, float]


@dataclass(frozen=True)
class Sent:
    """Requests under way. Their gradients add until the step that follows them."""

    futures: Sequence[Any]
    read: Callable[[list[Any]], Metrics]
    known: Mapping[str, float] = field(default_factory=dict)
    """Metrics that were known before."""

    def metrics(self) -> Metrics:
        return {**self.known, **self.read([future.result() for future in self.futures])}


class Signal(Protocol):
    words: str
    """What computes it, for people."""

    def send(self, rollouts: Sequence[Rollout], sampler: Any) -> Sent:
        """Gradients of the batch; `sampler` is the student's when it was drawn, or since."""
        ...

    def look(self, rollouts: Sequence[Rollout], sampler: Any) -> Sent:
        """The same figures without a gradient."""
        ...


def total(outputs: Sequence[Any], name: str) -> float:
    return float(sum(output.metrics.get(name, 0.0) for output in outputs))
