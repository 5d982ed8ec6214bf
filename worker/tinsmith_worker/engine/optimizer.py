"""A run's adapter with its gradient and its optimizer's moments, and the step that joins them.

Weights, gradient and moments are flat rows of one length, so a step is one sweep over memory, and the
steps of many runs are one call.

Legend: P numbers of an adapter.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.optim.adamw import adamw

from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.muon import MuonParams, muon
from tinsmith_worker.engine.values import InvalidInput

MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "dimuon": ("momentum",)}
"""What each optimizer remembers of the gradients so far, by PEFT-like names."""
MAX_AVERAGES = 4
"""Averages of its weights that a run may keep: each takes as much memory as they do."""


@dataclass(frozen=True, kw_only=True)
class AdamParams:
    """AdamW (Loshchilov & Hutter 2019); defaults from tinker-docs."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0
    """Largest global norm of this run's gradient; 0 leaves it as it is."""

    def validate(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not np.isfinite(value) or value < 0:
                raise InvalidInput(f"adam_params.{one.name}: {value} is not a number from 0.")
        for name in ("beta1", "beta2"):
            if getattr(self, name) >= 1:
                raise InvalidInput(f"adam_params.{name}: {getattr(self, name)} is not below 1.")
        if self.eps == 0:
            raise InvalidInput("adam_params.eps: 0 divides by zero; use a small positive number.")
        if self.learning_rate > 1e3:
            raise InvalidInput(f"adam_params.learning_rate: {self.learning_rate} is above 1000.")


Params = AdamParams | MuonParams


class RunState:
    """An adapter, its optimizer and the gradient gathered since the last step."""

    def __init__(self, adapter: Adapter, optimizer: str = "adamw") -> None:
        self.adapter = adapter
        self.optimizer = optimizer
        self.gradient: Tensor | None = None
        self.moments: tuple[Tensor, ...] | None = None
        """Running means of the gradient (and of its square), [P] each; None before the first step."""
        self.steps = 0
        self.averages: dict[tuple[float, int], Tensor] = {}
        """By rate and steps between: the weights' running means [P], kept for teaching."""

    @property
    def has_gradient(self) -> bool:
        return self.gradient is not None

    def add_gradient(self, gradient_P: Tensor) -> None:
        """Takes the row over."""
        if self.gradient is None:
            self.gradient = gradient_P
        else:
            self.gradient += gradient_P

    def copied(self) -> "RunState":
        """As of now, for ever; without the gradient."""
        twin = RunState(self.adapter.frozen(), self.optimizer)
        twin.moments = self.moments and tuple(row_P.clone() for row_P in self.moments)
        twin.steps = self.steps
        twin.averages = {key: row_P.clone() for key, row_P in self.averages.items()}
        return twin

    def averaged(self, rate: float, every: int) -> Adapter:
        """The mean of the weights; before it was kept, the weights as they are. Raises InvalidInput."""
        row_P = self.averages.get((rate, every))
        if row_P is None and len(self.averages) >= MAX_AVERAGES:
            raise InvalidInput(
                f"loss_fn_config.teacher: this run keeps {MAX_AVERAGES} averages already, and no more."
            )
        return self.adapter if row_P is None else self.adapter.with_row(row_P)

    def keep_average(self, rate: float, every: int) -> None:
        """From now on: an op that a replay repeats has asked for it."""
        self.averages.setdefault((rate, every), self.adapter.row.clone())

    def average(self) -> None:
        """mean <- (1 - rate) mean + rate weights, after each `every` steps (SDFT, 2601.19897)."""
        for (rate, every), row_P in self.averages.items():
            if self.steps % every == 0:
                row_P.lerp_(self.adapter.row, rate)

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The moments by PEFT's names; empty before the first step."""
        if self.moments is None:
            return {}
        layout = self.adapter.layout
        return {
            f"{kind}.{name}": view
            for kind, row_P in zip(MOMENTS[self.optimizer], self.moments, strict=True)
            for name, view in layout.tensors(row_P).items()
        }

    def load_optimizer(self, tensors: dict[str, Tensor], steps: int) -> None:
        self.steps = steps
        if not tensors:
            return
        self.moments = self._fresh_moments()
        for name, view in self.optimizer_tensors().items():
            view.copy_(tensors[name])

    def _fresh_moments(self) -> tuple[Tensor, ...]:
        return tuple(torch.zeros_like(self.adapter.row) for _ in MOMENTS[self.optimizer])

    def ready_to_step(self) -> tuple[Tensor, ...]:
        """Weights, gradient and moments, [P] each; a missing gradient is zero."""
        self.moments = self.moments or self._fresh_moments()
        gradient_P = torch.zeros_like(self.adapter.row) if self.gradient is None else self.gradient
        return self.adapter.row, gradient_P, *self.moments


def check_params(run: RunState, params: Params) -> None:
    """Raises InvalidInput."""
    if isinstance(params, MuonParams) is not (run.optimizer == "dimuon"):
        field = "optimizer_params" if run.optimizer == "dimuon" else "adam_params"
        raise InvalidInput(f"{field}: this run was created with {run.optimizer}; give its params.")
    params.validate()


def optim_step(run: RunState, params: Params) -> dict[str, float]:
    """Apply the gathered gradient and clear it; answers the step's metrics.

    Without one the step is taken with a gradient of zero: moments decay, and so do weights where
    weight_decay says so.
    """
    [metrics] = optim_steps([(run, params)])
    return metrics


def optim_steps(steps: Sequence[tuple[RunState, Params]]) -> list[dict[str, float]]:
    """Each run's step, together where the settings are the same. Raises InvalidInput before any."""
    for run, params in steps:
        check_params(run, params)
    together: dict[Params, list[RunState]] = {}
    for run, params in steps:
        together.setdefault(params, []).append(run)
    norms: dict[int, float] = {}
    for params, runs in together.items():
        rows = [run.ready_to_step() for run in runs]
        for run, (_, gradient_P, *_) in zip(runs, rows, strict=True):
            norms[id(run)] = _clip(gradient_P, params.grad_clip_norm)
        if isinstance(params, AdamParams):
            _adamw(rows, [run.steps for run in runs], params)
        else:
            for run, (weights_P, gradient_P, momentum_P) in zip(runs, rows, strict=True):
                muon(weights_P, gradient_P, momentum_P, run.adapter.layout, params)
        for run in runs:
            run.gradient = None
            run.steps += 1
            run.adapter.changed()
            run.average()
    return [
        {
            "grad_norm": norms[id(run)],
            "learning_rate": params.learning_rate,
            "step": float(run.steps),
        }
        for run, params in steps
    ]


def _clip(gradient_P: Tensor, largest: float) -> float:
    """The norm before clipping; the factor is torch's."""
    norm = float(gradient_P.norm())
    if 0 < largest < norm + 1e-6:
        gradient_P *= largest / (norm + 1e-6)
    return norm


def _adamw(rows: Sequence[tuple[Tensor, ...]], steps: list[int], params: AdamParams) -> None:
    weights, gradients, means, squares = (list(column) for column in zip(*rows, strict=True))
    adamw(
        weights,
        gradients,
        means,
        squares,
        [],
        [torch.tensor(float(count), device=weights[0].device) for count in steps],
        fused=True,
        amsgrad=False,
        lr=params.learning_rate,
        beta1=params.beta1,
        beta2=params.beta2,
        eps=params.eps,
        weight_decay=params.weight_decay,
        maximize=False,
    )
