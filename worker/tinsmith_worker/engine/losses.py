"""Token losses.

Each loss is a sum over the tokens of a datum, never a mean: the SDK may cut one forward_backward
into several requests, and only a sum gives the same gradient however the batch was cut. Formulas and
published defaults: tinker-docs, "Loss functions"; where no default is published, ours is marked.

Shapes: N target positions, K scored candidates per position.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tinsmith_worker.engine import custom_loss
from tinsmith_worker.engine.distill_config import DistillConfig, JSDConfig, PGConfig, ULDConfig
from tinsmith_worker.engine.loss_program import Program
from tinsmith_worker.engine.values import Datum, InvalidInput

Inputs = Mapping[str, Tensor]
TRUNCATION = 2.0
"""The largest importance weight of stable_reinforce."""


@dataclass(frozen=True, kw_only=True)
class NoConfig:
    pass


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    clip_low_threshold: float = 0.8
    clip_high_threshold: float = 1.2


@dataclass(frozen=True, kw_only=True)
class CISPOConfig:
    clip_low_threshold: float = 0.0
    clip_high_threshold: float = 4.0


@dataclass(frozen=True, kw_only=True)
class DROConfig:
    beta: float = 0.05  # ours: the value of the docs' example


@dataclass(frozen=True, kw_only=True)
class GSPOConfig:
    clip_low_threshold: float = 0.8  # ours: as for ppo
    clip_high_threshold: float = 1.2


@dataclass(frozen=True, kw_only=True)
class StableReinforceConfig:
    kl_coeff: float = 0.0  # ours


def cross_entropy(logprobs: Tensor, inputs: Inputs, config: NoConfig) -> Tensor:
    """-sum w log p over positions and candidates, [N] or [N, K]."""
    return -(inputs["weights"] * logprobs).sum()


def importance_sampling(logprobs_N: Tensor, inputs: Inputs, config: NoConfig) -> Tensor:
    """-sum r A with r = p/q per token."""
    return -(importance_ratio(logprobs_N, inputs) * inputs["advantages"]).sum()


def ppo(logprobs_N: Tensor, inputs: Inputs, config: PPOConfig) -> Tensor:
    """-sum min(r A, clip(r) A) (Schulman et al. 2017, eq. 7)."""
    return clipped(importance_ratio(logprobs_N, inputs), inputs, config)


def cispo(logprobs_N: Tensor, inputs: Inputs, config: CISPOConfig) -> Tensor:
    """-sum stopgrad(clip(r)) log p A (MiniMax-M1, 2506.13585, eq. 4)."""
    ratio_N = importance_ratio(logprobs_N, inputs).detach()
    weight_N = clip(ratio_N, inputs, config) * inputs["advantages"]
    return -(weight_N * logprobs_N).sum()


def dro(logprobs_N: Tensor, inputs: Inputs, config: DROConfig) -> Tensor:
    """-sum (log p A - beta/2 (log p - log q)^2) (Richemond et al. 2024, eq. 5)."""
    log_ratio_N = logprobs_N - inputs["logprobs"]
    return -(logprobs_N * inputs["advantages"] - 0.5 * config.beta * log_ratio_N.square()).sum()


def gspo(logprobs_N: Tensor, inputs: Inputs, config: GSPOConfig) -> Tensor:
    """-sum min(r A, clip(r) A), r = stopgrad(s) p/stopgrad(p) (GSPO-token, 2507.18071, eq. 13-14).

    s is the sequence's ratio: exp of the mean log ratio over `sequence_ratio_mask`.
    """
    mask_N = inputs.get("sequence_ratio_mask", torch.ones_like(logprobs_N)) != 0
    log_ratio_N = (logprobs_N - inputs["logprobs"]).detach()
    sequence_ratio = log_ratio_N[mask_N].mean().exp() if mask_N.any() else log_ratio_N.new_ones(())
    ratio_N = sequence_ratio * (logprobs_N - logprobs_N.detach()).exp()
    return clipped(ratio_N, inputs, config)


def stable_reinforce(logprobs_N: Tensor, inputs: Inputs, config: StableReinforceConfig) -> Tensor:
    """-sum stopgrad(min(r, 2)) A log p + kl/2 sum (log p - log q)^2 over sampled tokens. A rule of ours.

    q are the log-probabilities recorded at sampling time. The weights are truncated as in Ionides
    (2008); the second term's gradient is that of KL(p, q) where the tokens are p's own.
    """
    log_ratio_N = (logprobs_N - inputs["logprobs"]).masked_fill(inputs["sampled"] == 0, 0.0)
    weight_N = log_ratio_N.detach().exp().clamp(max=TRUNCATION) * inputs["advantages"]
    return -(weight_N * logprobs_N).sum() + 0.5 * config.kl_coeff * log_ratio_N.square().sum()


def taught(logprobs_N: Tensor, inputs: Inputs, config: DistillConfig) -> Tensor:
    """-ce_weight sum w log p: what a loss with a teacher is without one; the rest is in `lessons`."""
    return -config.ce_weight * (inputs["weights"] * logprobs_N).sum()


def importance_ratio(logprobs_N: Tensor, inputs: Inputs) -> Tensor:
    """p/q per token, 1 where the advantage is 0.

    Such a token is filled before exp: multiplied afterwards, inf * 0 would leave nan in the gradient.
    """
    log_ratio_N = logprobs_N - inputs["logprobs"]
    return log_ratio_N.masked_fill(inputs["advantages"] == 0, 0.0).exp()


def clipped(ratio_N: Tensor, inputs: Inputs, config: PPOConfig | GSPOConfig) -> Tensor:
    advantages_N = inputs["advantages"]
    return -torch.minimum(
        ratio_N * advantages_N, clip(ratio_N, inputs, config) * advantages_N
    ).sum()


def clip(ratio_N: Tensor, inputs: Inputs, config: PPOConfig | CISPOConfig | GSPOConfig) -> Tensor:
    """Bounds per token where the datum brings them, else the config's."""
    low = inputs.get("clip_low_threshold", ratio_N.new_tensor(config.clip_low_threshold))
    high = inputs.get("clip_high_threshold", ratio_N.new_tensor(config.clip_high_threshold))
    return torch.minimum(torch.maximum(ratio_N, low), high)


@dataclass(frozen=True)
class Loss:
    function: Callable[[Tensor, Inputs, Any], Tensor]
    config: type
    required: tuple[str, ...]
    optional: tuple[str, ...] = field(default=())
    idle_at_zero: str | None = None
    """The input whose zero leaves a token without gradient."""
    whole_datum: bool = False
    """Whether one token's gradient depends on the datum's other tokens."""
    two_dimensional: bool = False
    """Whether it scores [N, K] candidates."""
    open_inputs: bool = False
    """Whether it may read inputs of any name and shape."""
    apart: tuple[str, ...] = field(default=())
    """Inputs of a shape of their own, which the function does not see."""

    @property
    def has_teacher(self) -> bool:
        return issubclass(self.config, DistillConfig)

    def gradient(self, logprobs: Tensor, inputs: Inputs, config: Any) -> Tensor:
        """d loss / d log p. Raises InvalidInput where a loss of the caller's own fails."""
        if self.config is Program:
            return custom_loss.gradient(logprobs, inputs, config)
        leaf = logprobs.detach().requires_grad_()
        with torch.enable_grad():
            total = self.function(leaf, inputs, config)
        [grad] = torch.autograd.grad(total, leaf)
        return grad

    def idle(self, inputs: Mapping[str, npt.NDArray[np.generic]]) -> npt.NDArray[np.bool_]:
        if self.idle_at_zero is None:
            return np.zeros(inputs["target_tokens"].shape, np.bool_)
        zero: npt.NDArray[np.bool_] = inputs[self.idle_at_zero] == 0
        return zero


_RL, _A = ("logprobs", "advantages"), "advantages"
_TEACHER = ("teacher_tokens", "teacher_pos", "teacher_index")
_CLIPS = ("clip_low_threshold", "clip_high_threshold")
LOSSES = {
    "cross_entropy": Loss(
        cross_entropy, NoConfig, ("weights",), (), "weights", two_dimensional=True
    ),
    "importance_sampling": Loss(importance_sampling, NoConfig, _RL, (), _A),
    "ppo": Loss(ppo, PPOConfig, _RL, _CLIPS, _A),
    "cispo": Loss(cispo, CISPOConfig, _RL, _CLIPS, _A),
    "dro": Loss(dro, DROConfig, _RL),
    "gspo": Loss(gspo, GSPOConfig, _RL, (*_CLIPS, "sequence_ratio_mask"), _A, whole_datum=True),
    "stable_reinforce": Loss(
        stable_reinforce, StableReinforceConfig, ("logprobs", "advantages", "sampled")
    ),
    "x_distill_jsd": Loss(
        taught, JSDConfig, ("weights",), ("logprobs",), "weights", apart=_TEACHER
    ),
    "x_distill_uld": Loss(
        taught, ULDConfig, ("weights",), ("logprobs",), "weights", apart=(*_TEACHER, "align")
    ),
    "x_distill_pg": Loss(
        taught,
        PGConfig,
        ("weights",),
        ("logprobs", "advantages", "mixture_logprobs"),
        "weights",
        apart=(*_TEACHER, "align"),
    ),
    "custom": Loss(
        custom_loss.loss, Program, (), whole_datum=True, two_dimensional=True, open_inputs=True
    ),
}


def find(name: str) -> Loss:
    if name not in LOSSES:
        raise InvalidInput(f"loss_fn: {name!r} is not one of {', '.join(LOSSES)}.")
    return LOSSES[name]


def configure(name: str, given: Mapping[str, float | str]) -> Any:
    """The loss's config; a misspelt key must not train quietly with the default."""
    config: Any = find(name).config
    if config is Program:
        return custom_loss.configure(given)
    if issubclass(config, DistillConfig):
        return config.parse(name, given)
    known = [one.name for one in fields(config)]
    for key, value in given.items():
        if key not in known:
            offered = ", ".join(known) or "none"
            raise InvalidInput(f"loss_fn_config: {name} knows no {key!r}; its keys: {offered}.")
        if not isinstance(value, float) or not np.isfinite(value):
            raise InvalidInput(f"loss_fn_config.{key}: {value!r} is not a finite number.")
    return config(**given)


def validate(data: list[Datum], name: str, vocab_size: int, max_context: int) -> None:
    """Refuse, by field, what would otherwise fail deep inside a pass or train on nonsense."""
    loss = find(name)
    if not data:
        raise InvalidInput("data: the request holds no datum.")
    for index, datum in enumerate(data):
        where = f"data[{index}]"
        _validate_tokens(datum.tokens, f"{where}.model_input", vocab_size, max_context)
        names = {"target_tokens", *loss.required, *loss.optional, *loss.apart}
        missing = {"target_tokens", *loss.required} - datum.inputs.keys()
        unknown = datum.inputs.keys() - names
        if missing:
            raise InvalidInput(
                f"{where}.loss_fn_inputs: {name} needs {', '.join(sorted(missing))}."
            )
        if unknown and not loss.open_inputs:
            raise InvalidInput(
                f"{where}.loss_fn_inputs: {name} knows no {', '.join(sorted(unknown))}; "
                f"it takes {', '.join(sorted(names))}."
            )
        _validate_targets(datum, where, loss.two_dimensional)
        if not loss.open_inputs:
            _validate_inputs(datum, where, loss.apart)
        _validate_ids(
            datum.inputs["target_tokens"], f"{where}.loss_fn_inputs.target_tokens", vocab_size
        )


def _validate_tokens(tokens: Any, where: str, vocab_size: int, max_context: int) -> None:
    if not tokens.size:
        raise InvalidInput(f"{where}: it holds no token.")
    if tokens.size > max_context:
        raise InvalidInput(
            f"{where}: {tokens.size} tokens are more than the model's context of {max_context}."
        )
    _validate_ids(tokens, where, vocab_size)


def _validate_ids(ids: Any, where: str, vocab_size: int) -> None:
    bad = ids[(ids < 0) | (ids >= vocab_size)]
    if bad.size:
        raise InvalidInput(
            f"{where}: token id {int(bad.flat[0])} is outside the vocabulary (0 to {vocab_size - 1})."
        )


def _validate_targets(datum: Datum, where: str, two_dimensional: bool) -> None:
    targets = datum.inputs["target_tokens"]
    if not np.issubdtype(targets.dtype, np.integer):
        raise InvalidInput(f"{where}.loss_fn_inputs.target_tokens: token ids must be int64.")
    if targets.ndim != 1 and not (two_dimensional and targets.ndim == 2 and targets.shape[1] > 0):
        raise InvalidInput(
            f"{where}.loss_fn_inputs.target_tokens: shape {list(targets.shape)} is not [N]"
            + (" or [N, K]." if two_dimensional else ".")
        )
    if targets.shape[0] != datum.tokens.size:
        raise InvalidInput(
            f"{where}.loss_fn_inputs.target_tokens: shape {list(targets.shape)} does not go with "
            f"{datum.tokens.size} input tokens."
        )


def _validate_inputs(datum: Datum, where: str, apart: tuple[str, ...]) -> None:
    length, targets = datum.tokens.size, datum.inputs["target_tokens"]
    for name, array in datum.inputs.items():
        if name in apart:
            continue
        if array.shape[:1] != (length,) or array.shape != targets.shape:
            raise InvalidInput(
                f"{where}.loss_fn_inputs.{name}: shape {list(array.shape)} does not go with "
                f"{length} input tokens and target_tokens of shape {list(targets.shape)}."
            )
        if not np.isfinite(array).all():
            raise InvalidInput(f"{where}.loss_fn_inputs.{name}: holds nan or infinity.")
