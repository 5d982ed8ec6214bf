"""Gradients and steps of many runs on one frozen base model.

A pass holds micro-batches of several runs, one request of a run at a time. A request is cut by its
own size alone, its gradient is collected apart and added to the run's only when all of it is finite:
so what a run learns depends on nobody else, and a failed request leaves nothing behind.

Legend: N tokens of a micro-batch, R rows of a head chunk, K candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tinsmith_worker.engine import losses
from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.packed import HEAD_ROWS, Pass, Segment, enough_rows
from tinsmith_worker.engine.values import Datum, InvalidInput


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


class RunState:
    """An adapter, its optimizer and the gradient gathered since the last step."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.parameters = adapter.parameters()
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=0.0)
        self.gradient: list[Tensor] | None = None
        self.steps = 0

    @property
    def has_gradient(self) -> bool:
        return self.gradient is not None

    def add_gradient(self, gradient: list[Tensor]) -> None:
        if self.gradient is None:
            self.gradient = gradient
        else:
            torch._foreach_add_(self.gradient, gradient)

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Adam's moments by PEFT's names; empty before the first step."""
        tensors = {}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        return tensors

    def load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        if not tensors:
            return
        for name, parameter in self.parameters.items():
            self.optimizer.state[parameter] = {
                "step": tensors[f"step.{name}"].clone(),
                "exp_avg": tensors[f"exp_avg.{name}"].to(parameter.device, copy=True),
                "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(parameter.device, copy=True),
            }


@dataclass(frozen=True, kw_only=True)
class Work:
    run: RunState
    data: list[Datum]
    loss_fn: str
    loss_fn_config: dict[str, float | str]
    forward_only: bool = False


@dataclass
class Outcome:
    """One float32 array per datum, shaped like its targets; or why there is none."""

    logprobs: list[npt.NDArray[np.float32]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None


@dataclass
class _Progress:
    """A request on its way: the micro-batches to come and what came of the others."""

    work: Work
    config: Any
    batches: list[list[Datum]]
    outcome: Outcome
    loss: float = 0.0
    gradient: list[Tensor] | None = None

    @property
    def active(self) -> bool:
        return bool(self.batches) and self.outcome.error is None


def forward_backward(
    model: BaseModel, works: Sequence[Work], *, max_pass_tokens: int
) -> list[Outcome]:
    """Every work's logprobs and loss; gradients are added to the runs of those that succeeded."""
    assert len({id(work.run) for work in works}) == len(works), "one request of a run at a time"
    progress = [_begin(model, work, max_pass_tokens) for work in works]
    for forward_only in (True, False):
        group = [one for one in progress if one.work.forward_only is forward_only]
        while active := [one for one in group if one.active]:
            _shared_pass(model, active, forward_only)
    for one in progress:
        _settle(one)
    return [one.outcome for one in progress]


def _begin(model: BaseModel, work: Work, max_pass_tokens: int) -> _Progress:
    try:
        config = losses.configure(work.loss_fn, work.loss_fn_config)
        losses.validate(work.data, work.loss_fn, model.vocab_size, model.max_context_length)
    except InvalidInput as error:
        return _Progress(work, None, [], Outcome(error=str(error)))
    return _Progress(work, config, _cut(work.data, max_pass_tokens), Outcome())


def _cut(data: list[Datum], max_tokens: int) -> list[list[Datum]]:
    batches: list[list[Datum]] = []
    size = max_tokens + 1
    for datum in data:
        size += datum.tokens.size
        if size > max_tokens:
            batches.append([])
            size = datum.tokens.size
        batches[-1].append(datum)
    return batches


def _shared_pass(model: BaseModel, active: list[_Progress], forward_only: bool) -> None:
    """One micro-batch of each; when memory runs out for all together, each alone."""
    try:
        with torch.set_grad_enabled(not forward_only):
            _pass(model, active)
    except torch.OutOfMemoryError:
        _forget_gradients(active)
        if len(active) == 1:
            active[0].outcome = Outcome(
                error="data: a datum of this request needs more memory than there is; shorten it."
            )
            return
        for one in active:
            _shared_pass(model, [one], forward_only)
        return
    for one in active:
        one.batches.pop(0)


def _pass(model: BaseModel, active: list[_Progress]) -> None:
    data = [(one, datum) for one in active for datum in one.batches[0]]
    segments = [Segment(datum.tokens.tolist(), one.work.run.adapter) for one, datum in data]
    current = Pass(enough_rows(segments))
    hidden_NH = model.hidden(current)
    found: dict[int, list[Tensor]] = {}
    sums: dict[int, Tensor] = {}
    start = 0
    for one in active:
        batch = one.batches[0]
        end = start + sum(datum.tokens.size for datum in batch)
        logprobs = target_logprobs(model, hidden_NH[start:end], one.work.run.adapter, batch)
        found[id(one)] = logprobs
        sums[id(one)] = torch.stack(
            [_loss(model, one, *pair) for pair in zip(batch, logprobs, strict=True)]
        ).sum()
        start = end
    finite = [one for one in active if _note(one, found[id(one)], sums[id(one)])]
    if finite and torch.is_grad_enabled():
        total = torch.stack([sums[id(one)] for one in finite]).sum()
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
        for one in finite:
            _collect(one)
        _forget_gradients(active)


def _loss(model: BaseModel, one: _Progress, datum: Datum, logprobs: Tensor) -> Tensor:
    inputs = {name: _tensor(array, model) for name, array in datum.inputs.items()}
    return losses.find(one.work.loss_fn).function(logprobs, inputs, one.config)


def target_logprobs(
    model: BaseModel, hidden_NH: Tensor, adapter: Adapter, batch: Sequence[Datum]
) -> list[Tensor]:
    """Per datum log p of its targets, in their shape; N counts the tokens of all of them.

    [N, vocab] is never held, in either direction: the head runs over some rows at a time, and again
    for the gradient.
    """
    targets = [_tensor(datum.inputs["target_tokens"], model) for datum in batch]
    width = max(one.shape[1] if one.ndim == 2 else 1 for one in targets)
    targets_NK = torch.cat([_columns(one, width) for one in targets])

    def chunk(hidden_RH: Tensor, targets_RK: Tensor) -> Tensor:
        logits_RV = model.logits(hidden_RH, [(slice(0, hidden_RH.shape[0]), adapter)])
        return logits_RV.gather(1, targets_RK) - logits_RV.logsumexp(1, keepdim=True)

    pieces = [
        checkpoint(chunk, hidden_RH, targets_RK, use_reentrant=False)
        for hidden_RH, targets_RK in zip(
            torch.split(hidden_NH, HEAD_ROWS), torch.split(targets_NK, HEAD_ROWS), strict=True
        )
    ]
    rows = torch.split(torch.cat(pieces), [one.shape[0] for one in targets])
    return [
        row_NK[:, : one.shape[1]] if one.ndim == 2 else row_NK[:, 0]
        for row_NK, one in zip(rows, targets, strict=True)
    ]


def _columns(targets: Tensor, width: int) -> Tensor:
    """[N] or [N, K] as [N, width]; what is filled in is cut off again."""
    targets_NK = targets if targets.ndim == 2 else targets[:, None]
    return torch.nn.functional.pad(targets_NK, (0, width - targets_NK.shape[1]))


def _note(one: _Progress, logprobs: list[Tensor], loss: Tensor) -> bool:
    """Record a micro-batch; False when its numbers are not finite and the request has failed."""
    arrays = [row.detach().float().cpu().numpy() for row in logprobs]
    value = float(loss.detach())
    if not np.isfinite(value) or not all(np.isfinite(array).all() for array in arrays):
        one.outcome = Outcome(
            error="data: the loss is not finite. Check logprobs, advantages and weights, and whether "
            "the run has diverged (load an earlier checkpoint)."
        )
        return False
    one.outcome.logprobs += arrays
    one.loss += value
    return True


def _collect(one: _Progress) -> None:
    fresh = [
        parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        for parameter in one.work.run.parameters.values()
    ]
    if one.gradient is None:
        one.gradient = fresh
    else:
        torch._foreach_add_(one.gradient, fresh)


def _forget_gradients(active: list[_Progress]) -> None:
    for one in active:
        for parameter in one.work.run.parameters.values():
            parameter.grad = None


def _settle(one: _Progress) -> None:
    if one.outcome.error is not None:
        return
    if one.gradient is not None:
        if not torch.isfinite(_norm(one.gradient)):
            one.outcome = Outcome(error="data: the gradient is not finite; nothing of it was kept.")
            return
        one.work.run.add_gradient(one.gradient)
    one.outcome.metrics = {
        "loss:sum": one.loss,
        "tokens:sum": float(sum(datum.tokens.size for datum in one.work.data)),
    }


def optim_step(run: RunState, params: AdamParams) -> dict[str, float]:
    """Apply the gathered gradient and clear it.

    Without one the step is taken with a gradient of zero: moments decay, and so do weights where
    weight_decay says so.
    """
    params.validate()
    gradient = run.gradient or [torch.zeros_like(p) for p in run.parameters.values()]
    for parameter, grad in zip(run.parameters.values(), gradient, strict=True):
        parameter.grad = grad
    norm = _norm(gradient)
    if params.grad_clip_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(run.parameters.values(), params.grad_clip_norm, norm)
    for group in run.optimizer.param_groups:
        group.update(
            lr=params.learning_rate,
            betas=(params.beta1, params.beta2),
            eps=params.eps,
            weight_decay=params.weight_decay,
        )
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.gradient = None
    run.steps += 1
    return {
        "grad_norm": float(norm),
        "learning_rate": params.learning_rate,
        "step": float(run.steps),
    }


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.nn.utils.get_total_norm(tensors)


def _tensor(array: npt.NDArray[np.generic], model: BaseModel) -> Tensor:
    return torch.from_numpy(np.array(array)).to(model.device)
