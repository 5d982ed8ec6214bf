"""The configs, under TRL's names and with TRL's defaults; where one differs, its docstring says why."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tinsmith.trl.knobs import takes_trls_arguments

STRATEGIES = ("no", "steps", "epoch")


@dataclass(kw_only=True)
class TrainingConfig:
    """What all trainers share: transformers' TrainingArguments, and where the service is."""

    output_dir: str = "trainer_output"
    num_train_epochs: float = 3.0
    max_steps: int = -1
    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    """Micro-batches of a step. They go to the service together; each has a coin of its own for lmbda."""
    learning_rate: float = 2e-5
    lr_scheduler_type: str = "linear"
    lr_scheduler_kwargs: Mapping[str, Any] | None = None
    warmup_steps: float = 0
    warmup_ratio: float = 0.0
    optim: str = "adamw_torch"
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    logging_strategy: str = "steps"
    logging_steps: int = 10
    logging_first_step: bool = False
    eval_strategy: str = "no"
    eval_steps: int | None = None
    eval_on_start: bool = False
    save_strategy: str = "steps"
    save_steps: int = 500
    save_total_limit: int | None = None
    resume_from_checkpoint: str | bool | None = None
    report_to: str | list[str] = "none"
    run_name: str | None = None
    disable_tqdm: bool | None = None
    """False: a progress bar and a table (needs rich). None: log lines."""
    seed: int = 42
    data_seed: int | None = None
    max_length: int | None = 1024
    log_completions: bool = False
    num_completions_to_print: int | None = None
    lora_rank: int = 32
    """Ours: every student is a LoRA run of the service. peft_config says it too."""
    base_url: str | None = None
    """Ours: of the service; else TINKER_BASE_URL."""
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not str(self.optim).removeprefix("OptimizerNames.").lower().startswith("adamw"):
            raise ValueError(
                f"{self._name}.optim: {self.optim!r}; the service's optimizer is AdamW."
            )
        for name in ("logging_strategy", "eval_strategy", "save_strategy"):
            value = getattr(getattr(self, name), "value", getattr(self, name))
            setattr(self, name, value)
            if value not in STRATEGIES:
                raise ValueError(f"{self._name}.{name}: {value!r} is not one of {STRATEGIES}.")
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{self._name}.{name}: {getattr(self, name)} is not at least 1.")

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def batch_size(self) -> int:
        return self.per_device_train_batch_size * self.gradient_accumulation_steps


@takes_trls_arguments
@dataclass(kw_only=True)
class GKDConfig(TrainingConfig):
    """As trl.experimental.gkd: sampling at `temperature`, the divergence at 1."""

    temperature: float = 0.9
    lmbda: float = 0.5
    beta: float = 0.5
    max_new_tokens: int = 128
    teacher_model_name_or_path: str | None = None
    seq_kd: bool = False


@takes_trls_arguments
@dataclass(kw_only=True)
class GOLDConfig(TrainingConfig):
    """As trl.experimental.gold, but the merge of TRL's default `observed` is off by one token
    (docs/distillation.md): ours is `bayesian`."""

    temperature: float = 0.9
    top_p: float = 0.95
    top_k: int = 0
    lmbda: float = 0.5
    beta: float = 0.5
    max_completion_length: int = 128
    teacher_model_name_or_path: str | None = None
    teacher_tokenizer_name_or_path: str | None = None
    seq_kd: bool = False
    num_generations: int = 1
    use_uld_loss: bool = False
    uld_token_merge_strategy: str = "bayesian"
    use_extended_uld: bool = True
    uld_use_hybrid_loss: bool = False
    uld_hybrid_matched_weight: float | None = None
    uld_hybrid_unmatched_weight: float | None = None
    uld_crossentropy_weight: float = 0.0
    uld_distillation_weight: float = 1.0
    uld_student_temperature: float = 1.0
    uld_teacher_temperature: float = 1.0
    uld_skip_student_eos: bool = True
    uld_skip_teacher_eos: bool = True


@takes_trls_arguments
@dataclass(kw_only=True)
class MiniLLMConfig(TrainingConfig):
    """As trl.experimental.minillm of TRL 1.14.2. With the single step, which counts the current token
    exactly, the advantage counts only what follows (Gu et al., eq. 5); TRL counts the token twice."""

    learning_rate: float = 1e-6
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_completion_length: int = 256
    num_generations: int = 8
    teacher_model_name_or_path: str | None = None
    rkl_advantage: bool = True
    single_step_decomposition: bool = True
    use_distribution_distillation: bool | None = None
    """Another name of single_step_decomposition."""
    kd_temperature: float = 1.0
    gamma: float = 0.0
    length_normalization: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_distribution_distillation is not None:
            self.single_step_decomposition = self.use_distribution_distillation


@takes_trls_arguments
@dataclass(kw_only=True)
class DistillationConfig(TrainingConfig):
    """As TRL's DistillationTrainer: always on-policy, `temperature` for sampling and divergence."""

    learning_rate: float = 1e-6
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    beta: float = 1.0
    max_completion_length: int | None = 512
    teacher_model_name_or_path: str | None = None


@takes_trls_arguments
@dataclass(kw_only=True)
class SDFTConfig(TrainingConfig):
    """As trl.experimental.sdft. Rows have `prompt` and `privileged_context`."""

    learning_rate: float = 1e-6
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    num_generations: int = 8
    max_completion_length: int | None = 256
    teacher_model_kind: str = "base"
    teacher_update_rate: float = 0.05
    teacher_sync_steps: int = 1
    distillation_alpha: float = 0.5
    distillation_mode: str = "topk_logits"
    distillation_topk: int | None = 100
    distillation_is_clip: float | None = 2.0
    distillation_add_tail: bool = False
    teacher_prompt_template: str = "{prompt}\n\n{privileged_context}"
    num_loss_tokens_to_skip: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher_model_kind not in ("base", "live", "ema"):
            raise ValueError(
                f"SDFTConfig.teacher_model_kind: {self.teacher_model_kind!r} is not base, live or ema."
            )
        if self.distillation_mode not in ("topk_logits", "full_logits"):
            raise ValueError(
                f"SDFTConfig.distillation_mode: {self.distillation_mode!r} is not offered; use "
                "topk_logits or full_logits, or tinsmith.distill's OPD for sampled tokens."
            )
