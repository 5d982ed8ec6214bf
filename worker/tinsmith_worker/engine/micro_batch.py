"""One request's part of a pass: its sequences, its pairs of row and target, and its loss over them.

Legend: P pairs: every target of every datum, in order.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tinsmith_worker.engine import custom_loss
from tinsmith_worker.engine.adapter import Adapter, Gradient
from tinsmith_worker.engine.batching import Group
from tinsmith_worker.engine.head import Ints, Pairs, Weigh
from tinsmith_worker.engine.loss_program import Program
from tinsmith_worker.engine.losses import Loss
from tinsmith_worker.engine.packed import Segment
from tinsmith_worker.engine.values import Datum


@dataclass(frozen=True)
class Drift:
    """How far the trainer's logprobs are from those that the tokens were sampled with.

    The sum over tokens of r - 1 - log r with r = p/q, an estimate of KL(q, p) that is never negative
    (Schulman 2020, "Approximating KL divergence", k3). Right after sampling it is what sampler and
    trainer differ by; later steps add how far the policy has moved.
    """

    total: float = 0.0
    count: int = 0

    def __add__(self, other: "Drift") -> "Drift":
        return Drift(self.total + other.total, self.count + other.count)


class MicroBatch:
    def __init__(self, data: Sequence[Datum], groups: Sequence[Group], first_row: int) -> None:
        self._groups, self._all, self._first_row = groups, data, first_row
        self.members = [index for group in groups for index in group.members]
        self.data = [data[index] for index in self.members]
        sizes = [datum.tokens.size for datum in data]
        self.num_rows = sum(group.num_tokens(sizes) for group in groups)

    def segments(self, adapter: Adapter | None, gradient: Gradient | None) -> list[Segment]:
        made: list[Segment] = []
        for group in self._groups:
            before = None
            if group.shared:
                shared = self._all[group.members[0]].tokens[: group.shared]
                before = Segment(shared.tolist(), adapter, gradient=gradient)
                made.append(before)
            for index in group.members:
                own = self._all[index].tokens[group.shared :].tolist()
                made.append(Segment(own, adapter, after=before, gradient=gradient))
        return made

    @cached_property
    def rows(self) -> list[Ints]:
        """Each datum's rows in the pass."""
        rows, at = [], self._first_row
        for group in self._groups:
            shared = np.arange(at, at + group.shared)
            at += group.shared
            for index in group.members:
                own = self._all[index].tokens.size - group.shared
                rows.append(np.concatenate([shared, np.arange(at, at + own)]))
                at += own
        return rows

    def pairs(self, loss: Loss) -> Pairs:
        rows, tokens, idle = [], [], []
        for datum, places in zip(self.data, self.rows, strict=True):
            targets = datum.inputs["target_tokens"]
            width = targets.shape[1] if targets.ndim == 2 else 1
            rows.append(np.repeat(places, width))
            tokens.append(targets.reshape(-1).astype(np.int64))
            idle.append(loss.idle(datum.inputs).reshape(-1))
        return Pairs(*(np.concatenate(column) for column in (rows, tokens, idle)))  # type: ignore[arg-type]

    def loss(self, logprobs_P: Tensor, loss: Loss, config: Any) -> Tensor:
        if not loss.whole_datum:
            inputs = self._inputs(loss, config, logprobs_P.device)
            return loss.function(logprobs_P, inputs, config)
        each = self._each(logprobs_P)
        return torch.stack([loss.function(part, own, config) for part, own in each]).sum()

    def report(self, logprobs_P: Tensor, program: Program) -> tuple[Tensor, dict[str, float]]:
        """A custom loss, and the sums of its metrics."""
        sums: dict[str, float] = {}
        losses = []
        for part, own in self._each(logprobs_P):
            loss, metrics = custom_loss.report(part, own, program)
            losses.append(loss)
            for key, value in metrics.items():
                sums[key] = sums.get(key, 0.0) + value
        return torch.stack(losses).sum(), sums

    def _each(self, logprobs_P: Tensor) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Datum by datum: its log p, and all its inputs."""
        parts = torch.split(logprobs_P, [datum.inputs["target_tokens"].size for datum in self.data])
        for part, datum in zip(parts, self.data, strict=True):
            yield part, _tensors(datum.inputs, logprobs_P.device)

    def weigh(self, loss: Loss, config: Any) -> Weigh:
        """d loss / d log p of some pairs."""

        def some(logprobs: Tensor, indices: Ints) -> Tensor:
            inputs = self._inputs(loss, config, logprobs.device)
            picked = torch.from_numpy(indices).to(logprobs.device)
            chosen = {name: one[picked] for name, one in inputs.items()}
            return loss.gradient(logprobs, chosen, config)

        return some

    def weigh_whole(self, logprobs_P: Tensor, loss: Loss, config: Any) -> Tensor:
        """The same of all pairs, where the loss needs a whole datum."""
        return torch.cat([loss.gradient(part, own, config) for part, own in self._each(logprobs_P)])

    def _inputs(self, loss: Loss, config: Any, device: torch.device) -> dict[str, Tensor]:
        """Every input of all pairs back to back; a threshold that a datum leaves out is the config's."""
        if not hasattr(self, "_joined"):
            present = {name for datum in self.data for name in datum.inputs}
            names = {*loss.required, *loss.optional} & present
            self._joined = {
                name: torch.from_numpy(
                    np.concatenate([_flat(datum, name, config) for datum in self.data])
                ).to(device)
                for name in names
            }
        return self._joined

    def drift(self, logprobs_P: Tensor, loss: Loss) -> Drift:
        """Over the tokens that can weigh; none where a loss is not told how they were sampled."""
        if "logprobs" not in loss.required:
            return Drift()
        sampled = np.concatenate([datum.inputs["logprobs"].reshape(-1) for datum in self.data])
        idle = np.concatenate([loss.idle(datum.inputs).reshape(-1) for datum in self.data])
        log_ratio = (logprobs_P.cpu().numpy() - sampled)[~idle].astype(np.float64)
        k3 = np.expm1(np.minimum(log_ratio, 80.0)) - log_ratio
        return Drift(float(k3.sum()), int(k3.size))

    def by_datum(self, logprobs_P: Tensor) -> dict[int, npt.NDArray[np.float32]]:
        """By the datum's index in the request, shaped like its targets."""
        flat = logprobs_P.float().cpu().numpy()
        ends = np.cumsum([datum.inputs["target_tokens"].size for datum in self.data])
        return {
            index: part.reshape(datum.inputs["target_tokens"].shape)
            for index, datum, part in zip(
                self.members, self.data, np.split(flat, ends[:-1]), strict=True
            )
        }


def _flat(datum: Datum, name: str, config: Any) -> npt.NDArray[np.float32]:
    if name in datum.inputs:
        return datum.inputs[name].reshape(-1).astype(np.float32)
    return np.full(datum.inputs["target_tokens"].size, getattr(config, name), np.float32)


def _tensors(
    inputs: Mapping[str, npt.NDArray[np.generic]], device: torch.device
) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(one)).to(device) for name, one in inputs.items()}
