"""What a student may be taught by: the methods, their settings, and what of these is refused.

A method says what is wanted. How the service computes it, over its own losses or over plain Tinker
calls, is decided elsewhere (`signals`).

beta: 0 is the forward KL(teacher || student), 1 the reverse KL(student || teacher), as in TRL.
"""

from dataclasses import dataclass

POLICY_LOSSES = ("importance_sampling", "ppo", "cispo")
GOLD_MODES = ("chunk", "gold", "uld")
MERGES = ("bayesian", "observed")
MIXES = ("prompt", "batch")
REDUCTIONS = ("mean", "sum")


@dataclass(frozen=True, kw_only=True)
class OPD:
    """Tinker's on-policy distillation: the log-ratio of each sampled token is its advantage.

    A[n] = kl_coef (log q - log p), and with `discount` the discounted sum of it from n on. Source:
    Thinking Machines, "On-Policy Distillation" (2025). Between tokenizers, A[n] is that of the
    stretch of text that n belongs to, the shortest where tokens of both end together.
    """

    loss: str = "importance_sampling"
    kl_coef: float = 1.0
    discount: float = 0.0
    baseline: bool = False
    """Subtract the batch's mean: the same expected gradient, less noise (Williams 1992)."""
    reduction: str = "sum"

    def __post_init__(self) -> None:
        _one_of("OPD.loss", self.loss, POLICY_LOSSES)
        _one_of("OPD.reduction", self.reduction, REDUCTIONS)
        _within("OPD.discount", self.discount, 0, 1)


@dataclass(frozen=True, kw_only=True)
class GKD:
    """Generalised Jensen-Shannon divergence (Agarwal et al. 2306.13649, eq. 1)."""

    beta: float = 1.0
    lmbda: float = 1.0
    """Share of examples that the student completes; the others keep their own completion."""
    temperature: float = 1.0
    """Of the divergence, on both sides. That of sampling is the Distiller's."""
    seq_kd: bool = False
    """What the student does not complete is completed by the teacher."""
    top_k: int = 0
    """0: the whole vocabulary. On a service without x_distill_jsd, 0 means `PLAIN_TOP_K`."""
    tail: bool = True
    """One more bucket holds the rest of the mass; without it the top_k are renormalised."""
    scale_beta: bool = False
    """Divide by 4 beta (1 - beta): a mixed divergence of the size of a KL."""
    mix: str = "prompt"
    """`prompt`: an exact share of every batch; `batch`: a coin for each batch, as TRL."""
    reduction: str = "mean"

    def __post_init__(self) -> None:
        _within("GKD.beta", self.beta, 0, 1)
        _within("GKD.lmbda", self.lmbda, 0, 1)
        _positive("GKD.temperature", self.temperature)
        _one_of("GKD.mix", self.mix, MIXES)
        _one_of("GKD.reduction", self.reduction, REDUCTIONS)
        _support("GKD", self.top_k, self.tail, self.beta)


@dataclass(frozen=True, kw_only=True)
class GOLD:
    """Distillation between tokenizers.

    `chunk` is the reverse KL of each stretch of text where tokens of both end together: exact, and
    the default. `gold` and `uld` are TRL's: probabilities merged by stretch, or by position.
    """

    mode: str = "chunk"
    merge: str = "bayesian"
    beta: float = 0.5
    hybrid: bool = True
    matched_weight: float | None = None
    unmatched_weight: float | None = None
    temperature: float = 1.0
    teacher_temperature: float | None = None
    crossentropy_weight: float = 0.0
    distillation_weight: float = 1.0
    skip_student_eos: bool = True
    skip_teacher_eos: bool = True
    lmbda: float = 1.0
    seq_kd: bool = False
    mix: str = "prompt"
    reduction: str = "mean"

    def __post_init__(self) -> None:
        _one_of("GOLD.mode", self.mode, GOLD_MODES)
        _one_of("GOLD.merge", self.merge, MERGES)
        _within("GOLD.beta", self.beta, 0, 1)
        _within("GOLD.lmbda", self.lmbda, 0, 1)
        _positive("GOLD.temperature", self.temperature)
        _one_of("GOLD.mix", self.mix, MIXES)
        _one_of("GOLD.reduction", self.reduction, REDUCTIONS)


@dataclass(frozen=True, kw_only=True)
class MiniLLM:
    """Sequence-level reverse KL (Gu et al. 2306.08543).

    `single_step` weighs the exact part, KL(p||q) at every position; the policy gradient then counts
    what comes after the token only (eq. 5), unless `exclude_current` says otherwise.
    """

    single_step: float = 1.0
    kl_coef: float = 1.0
    gamma: float = 1.0
    """Of the return R[n+1] = sum over i > n of gamma^(i-n-1) r[i]; r = log q - log p. 0: none of it."""
    length_norm: bool = True
    exclude_current: bool = True
    loss: str = "importance_sampling"
    temperature: float = 1.0
    """Of the exact part."""
    top_k: int = 0
    reduction: str = "mean"

    def __post_init__(self) -> None:
        _within("MiniLLM.gamma", self.gamma, 0, 1)
        _positive("MiniLLM.temperature", self.temperature)
        _one_of("MiniLLM.loss", self.loss, POLICY_LOSSES)
        _one_of("MiniLLM.reduction", self.reduction, REDUCTIONS)
        if not self.single_step and not self.kl_coef:
            raise ValueError(
                "MiniLLM.single_step and MiniLLM.kl_coef are both 0: nothing is taught."
            )


@dataclass(frozen=True, kw_only=True)
class SDFT:
    """Self-distillation: the teacher is the student that reads more (Shenfeld et al. 2601.19897).

    Each example's `teacher_prompt` holds what only the teacher reads. Defaults are TRL's.
    """

    alpha: float = 0.5
    """beta of the divergence."""
    top_k: int = 100
    """Of the student; 0 is the whole vocabulary."""
    tail: bool = False
    is_clip: float = 2.0
    """Each token weighs min(p now / p when sampled, is_clip); 0 is off."""
    temperature: float = 1.0
    skip_tokens: int = 0
    """The first tokens of a completion that are not scored."""
    reduction: str = "mean"

    def __post_init__(self) -> None:
        _within("SDFT.alpha", self.alpha, 0, 1)
        _positive("SDFT.temperature", self.temperature)
        _one_of("SDFT.reduction", self.reduction, REDUCTIONS)
        if self.top_k == 1 and not self.tail:
            raise ValueError(
                "SDFT.top_k: 1 without a tail teaches nothing; set tail or more tokens."
            )
        if self.is_clip < 0 or self.skip_tokens < 0 or self.top_k < 0:
            raise ValueError("SDFT.is_clip, skip_tokens and top_k: none of them may be negative.")


@dataclass(frozen=True, kw_only=True)
class PromptDistillation:
    """Supervised tuning on what the teacher says, who may read a longer prompt than the student."""

    reduction: str = "mean"

    def __post_init__(self) -> None:
        _one_of("PromptDistillation.reduction", self.reduction, REDUCTIONS)


Method = OPD | GKD | GOLD | MiniLLM | SDFT | PromptDistillation


def _support(name: str, top_k: int, tail: bool, beta: float) -> None:
    if top_k < 0:
        raise ValueError(f"{name}.top_k: {top_k} is negative; 0 is the whole vocabulary.")
    if top_k == 1 and not tail and beta in (0, 1):
        raise ValueError(
            f"{name}.top_k: 1 without a tail teaches nothing; set tail or more tokens."
        )


def _one_of(name: str, value: str, offered: tuple[str, ...]) -> None:
    if value not in offered:
        raise ValueError(f"{name}: {value!r} is not one of {', '.join(offered)}.")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}: {value:g} is not from {low} to {high}.")


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name}: {value:g} is not above 0.")
