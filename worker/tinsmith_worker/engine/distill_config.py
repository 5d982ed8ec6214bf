"""What a distillation loss may be told in its loss_fn_config, and what of it is refused by name.

Defaults follow TRL's DistillationTrainer where it has one: reverse KL over the whole vocabulary, at
temperature 1 (docs/losses.md says where others differ).
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Self

from tinsmith_worker.engine.divergence import SUPPORTS, Measure
from tinsmith_worker.engine.values import InvalidInput

FIELDS = ("divergence", "teacher_logprobs", "entropy", "teacher_entropy")
"""What may be asked back for each token."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """What all of them take. Numbers travel as floats; a switch is 0 or 1."""

    teacher: str
    temperature: float = 1.0
    teacher_temperature: float = 0.0
    """0: the student's."""
    ce_weight: float = 0.0
    distill_weight: float = 1.0
    returns: str = "divergence"

    @property
    def wanted(self) -> list[str]:
        return [name.strip() for name in self.returns.split(",") if name.strip()]

    def check(self) -> None:
        if self.temperature <= 0 or self.teacher_temperature < 0:
            raise InvalidInput("loss_fn_config.temperature: it must be above 0.")
        for name in self.wanted:
            if name not in FIELDS:
                raise InvalidInput(
                    f"loss_fn_config.return: {name[:40]!r} is not one of {', '.join(FIELDS)}."
                )

    @classmethod
    def parse(cls, loss: str, given: Mapping[str, float | str]) -> Self:
        """Raises InvalidInput by field; a misspelt key must not train quietly with the default."""
        known = {_spelled(one.name): one for one in fields(cls)}
        for key in given:
            if key not in known:
                offered = ", ".join(known)
                raise InvalidInput(f"loss_fn_config: {loss} knows no {key!r}; its keys: {offered}.")
        if "teacher" not in given:
            raise InvalidInput(
                f"loss_fn_config.teacher: {loss} needs one: a base model, a tinker:// path, base, "
                "self or ema:<rate>."
            )
        values: dict[str, Any] = {
            known[key].name: _value(key, one, known[key]) for key, one in given.items()
        }
        made = cls(**values)
        made.check()
        return made


@dataclass(frozen=True, kw_only=True)
class JSDConfig(DistillConfig):
    beta: float = 1.0
    top_k: float = 0.0
    support: str = "auto"
    tail: float = 1.0
    scale_beta: float = 0.0
    is_clip: float = 0.0
    max_divergence: float = 0.0
    vocab: str = "common"

    def check(self) -> None:
        super().check()
        if not 0 <= self.beta <= 1:
            raise InvalidInput(f"loss_fn_config.beta: {self.beta:g} is not from 0 to 1.")
        if self.support not in SUPPORTS:
            raise InvalidInput(
                f"loss_fn_config.support: {self.support[:40]!r} is not one of {', '.join(SUPPORTS)}."
            )
        if self.vocab not in ("common", "strict"):
            raise InvalidInput("loss_fn_config.vocab: it is common or strict.")
        whole_number("top_k", self.top_k)
        switch("tail", self.tail)
        switch("scale_beta", self.scale_beta)
        for name in ("is_clip", "max_divergence"):
            if getattr(self, name) < 0:
                raise InvalidInput(f"loss_fn_config.{name}: it must be at least 0, which is off.")
        self._check_support()

    def _check_support(self) -> None:
        if not self.top_k:
            if self.support not in ("auto",):
                raise InvalidInput(
                    "loss_fn_config.support: it says which top_k tokens count; set top_k, or leave it "
                    "out for the whole vocabulary."
                )
            return
        alone = self.top_k == 1 or self.support == "sampled"
        two_sided = self.support == "union" or (self.support == "auto" and 0 < self.beta < 1)
        sampled_two = self.support == "sampled" and self.beta < 1
        if alone and not self.tail and not (two_sided or sampled_two):
            raise InvalidInput(
                "loss_fn_config.tail: one token alone, without a tail, always has probability 1 and "
                "teaches nothing; set tail 1 or a larger top_k."
            )

    @property
    def measure(self) -> Measure:
        scaled = self.scale_beta and 0 < self.beta < 1
        return Measure(
            beta=self.beta,
            temperature=self.temperature,
            teacher_temperature=self.teacher_temperature or self.temperature,
            top_k=int(self.top_k),
            support=self.support,
            tail=bool(self.tail),
            scale=1 / (4 * self.beta * (1 - self.beta)) if scaled else 1.0,
        )


@dataclass(frozen=True, kw_only=True)
class PGConfig(DistillConfig):
    pg_loss: str = "importance_sampling"
    clip_low_threshold: float = -1.0
    """-1: as the loss has it."""
    clip_high_threshold: float = -1.0
    kl_coef: float = 1.0
    gamma: float = 0.0
    length_norm: float = 0.0
    exclude_current: float = 0.0
    whiten: float = 0.0
    single_step: float = 0.0
    iw_gamma: float = 0.0
    teacher_mix_alpha: float = 0.0

    def check(self) -> None:
        super().check()
        if self.pg_loss not in PG_LOSSES:
            raise InvalidInput(
                f"loss_fn_config.pg_loss: {self.pg_loss[:40]!r} is not one of {', '.join(PG_LOSSES)}."
            )
        for name in ("length_norm", "exclude_current", "whiten"):
            switch(name, getattr(self, name))
        if not 0 <= self.gamma <= 1:
            raise InvalidInput(f"loss_fn_config.gamma: {self.gamma:g} is not from 0 to 1.")
        if not 0 <= self.teacher_mix_alpha < 1:
            raise InvalidInput("loss_fn_config.teacher_mix_alpha: it is not from 0 to below 1.")
        if self.single_step < 0 or self.iw_gamma < 0:
            raise InvalidInput("loss_fn_config.single_step and iw_gamma: they must be at least 0.")
        if self.pg_loss == "importance_sampling" and self.clips:
            raise InvalidInput(
                "loss_fn_config.clip_low_threshold: importance_sampling clips nothing; use ppo or cispo."
            )

    @property
    def clips(self) -> dict[str, float]:
        """Those that were given."""
        given = {name: getattr(self, name) for name in CLIPS}
        return {name: value for name, value in given.items() if value >= 0}

    @property
    def needs_same_tokens(self) -> str | None:
        """The first key that only makes sense token by token."""
        names = ("gamma", "exclude_current", "single_step", "iw_gamma", "teacher_mix_alpha")
        return next((name for name in names if getattr(self, name)), None)


@dataclass(frozen=True, kw_only=True)
class ULDConfig(DistillConfig):
    mode: str = "chunk"
    merge: str = "bayesian"
    hybrid: float = 1.0
    beta: float = 1.0
    w_matched: float = -1.0
    """-1: the share of the teacher's vocabulary that the student has too; the other weight is the rest."""
    w_unmatched: float = -1.0
    skip_student_eos: float = 1.0
    skip_teacher_eos: float = 1.0

    def check(self) -> None:
        super().check()
        for name, known in (
            ("mode", ("chunk", "gold", "uld")),
            ("merge", ("bayesian", "observed")),
        ):
            if getattr(self, name) not in known:
                raise InvalidInput(f"loss_fn_config.{name}: it is one of {', '.join(known)}.")
        for name in ("hybrid", "skip_student_eos", "skip_teacher_eos"):
            switch(name, getattr(self, name))
        if not 0 <= self.beta <= 1:
            raise InvalidInput(f"loss_fn_config.beta: {self.beta:g} is not from 0 to 1.")
        if (self.w_matched < 0) is not (self.w_unmatched < 0):
            raise InvalidInput("loss_fn_config.w_matched: give w_unmatched too, or neither.")


PG_LOSSES = ("importance_sampling", "ppo", "cispo")
CLIPS = ("clip_low_threshold", "clip_high_threshold")


def whole_number(name: str, value: float) -> None:
    if value < 0 or value != int(value):
        raise InvalidInput(f"loss_fn_config.{name}: {value:g} is not a whole number from 0.")


def switch(name: str, value: float) -> None:
    if value not in (0, 1):
        raise InvalidInput(f"loss_fn_config.{name}: {value:g} is neither 0 nor 1.")


def _spelled(name: str) -> str:
    return "return" if name == "returns" else name  # a keyword of Python's


def _value(key: str, value: float | str, one: Any) -> float | str:
    wanted = str if one.default is MISSING else type(one.default)
    if not isinstance(value, wanted):
        kind = "text" if wanted is str else "a number"
        raise InvalidInput(f"loss_fn_config.{key}: {value!r} is not {kind}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidInput(f"loss_fn_config.{key}: {value!r} is not a finite number.")
    return value
