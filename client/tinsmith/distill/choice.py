"""Which requests a method becomes on this service."""

import logging
from collections.abc import Sequence
from typing import Any

from tinsmith.distill.connection import Connection
from tinsmith.distill.methods import GKD, GOLD, OPD, SDFT, Method, MiniLLM, PromptDistillation
from tinsmith.distill.plain import PlainDivergence
from tinsmith.distill.policy import PolicySignal
from tinsmith.distill.returns import discounted, minillm
from tinsmith.distill.rollout import Rollout
from tinsmith.distill.served import ServedSignal
from tinsmith.distill.signals import Metrics, Sent, Signal
from tinsmith.distill.supervised import SupervisedSignal
from tinsmith.distill.teachers import Staff, Student

_LOG = logging.getLogger("tinsmith.distill")
BACKENDS = ("auto", "service", "plain")


class Choice:
    """Signals for one run. `backend`: auto takes the service's losses where it offers them."""

    def __init__(
        self, run: Any, student: Student, staff: Staff, connection: Connection, backend: str
    ) -> None:
        if backend not in BACKENDS:
            raise ValueError(f"backend: {backend!r} is not one of {', '.join(BACKENDS)}.")
        self._run, self._student, self._staff = run, student, staff
        self._connection, self._backend = connection, backend

    def signal(self, method: Method) -> Signal:
        match method:
            case OPD():
                return self._opd(method)
            case GKD():
                return self._gkd(method)
            case GOLD():
                return self._gold(method)
            case MiniLLM():
                return self._minillm(method)
            case SDFT():
                return self._sdft(method)
            case PromptDistillation():
                return SupervisedSignal(self._run, self._student, reduction=method.reduction)

    def _served(self, loss: str) -> bool:
        if self._backend == "plain":
            return False
        offered = loss in self._connection.losses
        if self._backend == "service" and not offered:
            known = ", ".join(self._connection.losses) or "none"
            raise ValueError(
                f"backend: this service does not offer {loss} (it offers: {known}); use backend='auto'."
            )
        return offered

    def _policy(self, **settings: Any) -> PolicySignal:
        return PolicySignal(self._run, self._student, self._staff, **settings)

    def _opd(self, method: OPD) -> Signal:
        return self._policy(
            loss=method.loss,
            coef=method.kl_coef,
            returns=lambda ratios: discounted(ratios, method.discount),
            baseline=method.baseline,
            reduction=method.reduction,
        )

    def _gkd(self, method: GKD) -> Signal:
        return self._divergence(
            beta=method.beta,
            temperature=method.temperature,
            top_k=method.top_k,
            tail=method.tail,
            scale_beta=method.scale_beta,
            reduction=method.reduction,
        )

    def _divergence(
        self,
        *,
        beta: float,
        temperature: float,
        top_k: int,
        tail: bool,
        scale_beta: bool = False,
        support: str = "auto",
        is_clip: float = 0.0,
        skip_tokens: int = 0,
        reduction: str = "mean",
        scale: float = 1.0,
    ) -> Signal:
        if not self._served("x_distill_jsd"):
            mixed = scale_beta and 0 < beta < 1
            plain = PlainDivergence(
                self._run,
                self._student,
                self._staff,
                beta=beta,
                temperature=temperature,
                top_k=top_k,
                tail=tail,
                support=support,
                reduction=reduction,
                skip_tokens=skip_tokens,
                is_clip=is_clip,
                scale=scale / (4 * beta * (1 - beta)) if mixed else scale,
            )
            _LOG.warning("This service has no x_distill_jsd: using %s.", plain.words)
            return plain
        config: dict[str, float | str] = {"beta": beta, "temperature": temperature}
        if top_k:
            config |= {"top_k": float(top_k), "tail": float(tail), "support": support}
        if scale_beta:
            config["scale_beta"] = 1.0
        if is_clip:
            config["is_clip"] = is_clip
        return ServedSignal(
            self._run,
            self._student,
            self._staff,
            "x_distill_jsd",
            config,
            reduction=reduction,
            skip_tokens=skip_tokens,
            with_logprobs=bool(is_clip),
            scale=scale,
        )

    def _gold(self, method: GOLD) -> Signal:
        if method.mode == "chunk":
            if method.lmbda < 1:
                raise ValueError(
                    "GOLD.lmbda: mode chunk scores what the student samples, so lmbda is 1 there."
                )
            return self._policy(coef=method.distillation_weight, reduction=method.reduction)
        if not self._served("x_distill_uld"):
            raise ValueError(
                f"GOLD.mode: {method.mode} needs the service's x_distill_uld, which it does not offer; "
                "mode chunk works on every service."
            )
        return ServedSignal(
            self._run,
            self._student,
            self._staff,
            "x_distill_uld",
            _uld_config(method),
            reduction=method.reduction,
        )

    def _minillm(self, method: MiniLLM) -> Signal:
        followed = method.kl_coef and (method.gamma or not method.exclude_current)
        if (
            followed
            and method.single_step
            and not method.top_k
            and self._backend != "plain"
            and "x_distill_pg" in self._connection.losses
        ):
            return ServedSignal(
                self._run,
                self._student,
                self._staff,
                "x_distill_pg",
                _minillm_config(method),
                reduction=method.reduction,
                with_logprobs=True,
            )
        parts: list[Signal] = []
        if followed:
            parts.append(
                self._policy(
                    loss=method.loss,
                    coef=method.kl_coef,
                    returns=lambda ratios: minillm(
                        ratios, method.gamma, method.length_norm, method.exclude_current
                    ),
                    reduction=method.reduction,
                )
            )
        if method.single_step:
            parts.append(
                self._divergence(
                    beta=1.0,
                    temperature=method.temperature,
                    top_k=method.top_k,
                    tail=True,
                    reduction=method.reduction,
                    scale=method.single_step,
                )
            )
        return parts[0] if len(parts) == 1 else Both(parts)

    def _sdft(self, method: SDFT) -> Signal:
        return self._divergence(
            beta=method.alpha,
            temperature=method.temperature,
            top_k=method.top_k,
            tail=method.tail,
            support="student" if method.top_k else "auto",
            is_clip=method.is_clip,
            skip_tokens=method.skip_tokens,
            reduction=method.reduction,
        )


class Both:
    """Several signals for the same rollouts; their gradients add."""

    def __init__(self, parts: Sequence[Signal]) -> None:
        self._parts = parts
        self.words = "; ".join(part.words for part in parts)

    def send(self, rollouts: Sequence[Rollout], sampler: Any) -> Sent:
        return self._joined([part.send(rollouts, sampler) for part in self._parts])

    def look(self, rollouts: Sequence[Rollout], sampler: Any) -> Sent:
        return self._joined([part.look(rollouts, sampler) for part in self._parts])

    def _joined(self, sent: Sequence[Sent]) -> Sent:
        def read(outputs: list[Any]) -> Metrics:
            found: Metrics = {}
            start, loss = 0, 0.0
            for part in sent:
                count = len(part.futures)
                metrics = {**part.known, **part.read(outputs[start : start + count])}
                loss += metrics.pop("loss", 0.0)
                found |= metrics
                start += count
            return found | {"loss": loss}

        return Sent([future for part in sent for future in part.futures], read)


def _minillm_config(method: MiniLLM) -> dict[str, float | str]:
    """Return and exact part in one pass: the service's own log q takes the place of a second call's."""
    return {
        "pg_loss": method.loss,
        "kl_coef": method.kl_coef,
        "gamma": method.gamma,
        "length_norm": float(method.length_norm),
        "exclude_current": float(method.exclude_current),
        "single_step": method.single_step,
        "temperature": method.temperature,
    }


def _uld_config(method: GOLD) -> dict[str, float | str]:
    def weight(value: float | None) -> float:
        return -1.0 if value is None else value

    return {
        "mode": method.mode,
        "merge": method.merge,
        "hybrid": float(method.hybrid),
        "beta": method.beta,
        "w_matched": weight(method.matched_weight),
        "w_unmatched": weight(method.unmatched_weight),
        "temperature": method.temperature,
        "teacher_temperature": method.teacher_temperature or method.temperature,
        "ce_weight": method.crossentropy_weight,
        "distill_weight": method.distillation_weight,
        "skip_student_eos": float(method.skip_student_eos),
        "skip_teacher_eos": float(method.skip_teacher_eos),
    }
