"""TRL's trainers: what each config means as a method of tinsmith.distill."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tinsmith.distill.methods import GKD, GOLD, SDFT, Method, MiniLLM
from tinsmith.distill.rollout import Example
from tinsmith.distill.teacher import Teacher
from tinsmith.trl.configs import (
    DistillationConfig,
    GKDConfig,
    GOLDConfig,
    MiniLLMConfig,
    SDFTConfig,
)
from tinsmith.trl.rows import example_of
from tinsmith.trl.trainer import Trainer

_LOG = logging.getLogger("tinsmith.trl")


class GKDTrainer(Trainer):
    config = GKDConfig
    args: GKDConfig

    def method(self, teacher: Teacher) -> Method:
        args = self.args
        return GKD(beta=args.beta, lmbda=args.lmbda, seq_kd=args.seq_kd, mix="batch")

    def sampling(self) -> dict[str, Any]:
        return {
            "max_tokens": self.args.max_new_tokens,
            "sampling_temperature": self.args.temperature,
        }


class DistillationTrainer(Trainer):
    config = DistillationConfig
    args: DistillationConfig

    def method(self, teacher: Teacher) -> Method:
        return GKD(beta=self.args.beta, temperature=self.args.temperature)

    def sampling(self) -> dict[str, Any]:
        return _sampling(self.args, 1)


class GOLDTrainer(Trainer):
    """With one tokenizer and without use_uld_loss: the divergence, as TRL. Between tokenizers the
    stretches of equal text are compared, exactly (docs/distillation.md), unless use_uld_loss asks for
    TRL's losses."""

    config = GOLDConfig
    args: GOLDConfig

    def method(self, teacher: Teacher) -> Method:
        args = self.args
        if args.use_uld_loss:
            return GOLD(
                mode="gold" if args.use_extended_uld else "uld",
                merge=args.uld_token_merge_strategy,
                beta=args.beta,
                hybrid=args.uld_use_hybrid_loss,
                matched_weight=args.uld_hybrid_matched_weight,
                unmatched_weight=args.uld_hybrid_unmatched_weight,
                temperature=args.uld_student_temperature,
                teacher_temperature=args.uld_teacher_temperature,
                crossentropy_weight=args.uld_crossentropy_weight,
                distillation_weight=args.uld_distillation_weight,
                skip_student_eos=args.uld_skip_student_eos,
                skip_teacher_eos=args.uld_skip_teacher_eos,
                lmbda=args.lmbda,
                seq_kd=args.seq_kd,
                mix="batch",
            )
        if self._one_tokenizer(teacher):
            return GKD(
                beta=args.beta,
                lmbda=args.lmbda,
                temperature=args.temperature,
                seq_kd=args.seq_kd,
                mix="batch",
            )
        _LOG.warning(
            "GOLDTrainer: the tokenizers differ, so the student's own samples are compared by stretches of "
            "equal text: lmbda and beta are 1 here. use_uld_loss=True asks for TRL's losses."
        )
        return GOLD(mode="chunk")

    def sampling(self) -> dict[str, Any]:
        return _sampling(self.args, self.args.num_generations)

    def _one_tokenizer(self, teacher: Teacher) -> bool:
        theirs = teacher.tokenizer
        if theirs is None:
            if teacher.of_the_run or teacher.name == self.base_model:
                return True
            create = self._service.create_sampling_client
            saved = "://" in teacher.name
            made = create(teacher.name) if saved else create(base_model=teacher.name)
            theirs = made.result().get_tokenizer()
        return bool(theirs.get_vocab() == self.processing_class.get_vocab())


class MiniLLMTrainer(Trainer):
    config = MiniLLMConfig
    args: MiniLLMConfig

    def method(self, teacher: Teacher) -> Method:
        args = self.args
        if not args.rkl_advantage and not args.single_step_decomposition:
            raise ValueError(
                "MiniLLMConfig.rkl_advantage and single_step_decomposition are both off: nothing is taught."
            )
        return MiniLLM(
            single_step=float(args.single_step_decomposition),
            kl_coef=float(args.rkl_advantage),
            gamma=args.gamma,
            length_norm=args.length_normalization,
            exclude_current=args.single_step_decomposition,
            temperature=args.kd_temperature,
        )

    def sampling(self) -> dict[str, Any]:
        return _sampling(self.args, self.args.num_generations)


class SDFTTrainer(Trainer):
    """The student teaches itself: it reads `privileged_context` when it does."""

    config = SDFTConfig
    args: SDFTConfig

    def method(self, teacher: Teacher) -> Method:
        args = self.args
        full = args.distillation_mode == "full_logits"
        return SDFT(
            alpha=args.distillation_alpha,
            top_k=0 if full else args.distillation_topk or 0,
            tail=args.distillation_add_tail,
            is_clip=args.distillation_is_clip or 0.0,
            temperature=args.temperature,
            skip_tokens=args.num_loss_tokens_to_skip,
        )

    def sampling(self) -> dict[str, Any]:
        return _sampling(self.args, self.args.num_generations)

    def _teacher(self, models: Any, given: Any, tokenizer: Any) -> Teacher:
        if given is not None:
            raise ValueError("SDFTTrainer.teacher_model: the student teaches itself; leave it out.")
        args = self.args
        average = f"ema:{args.teacher_update_rate:g}:{args.teacher_sync_steps}"
        return Teacher({"base": "base", "live": "self", "ema": average}[args.teacher_model_kind])

    def _example(self, row: Mapping[str, Any]) -> Example:
        if "privileged_context" not in row:
            raise ValueError("train_dataset: SDFT's rows have prompt and privileged_context.")
        prompt = row["prompt"]
        if isinstance(prompt, str):
            asked: Any = self._composed(prompt, row)
        else:
            *before, last = prompt
            asked = [*before, {**last, "content": self._composed(last["content"], row)}]
        made = example_of({"prompt": prompt}, self.processing_class, self.args.max_length)
        return replace(made, teacher_prompt=asked)

    def _composed(self, prompt: str, row: Mapping[str, Any]) -> str:
        return self.args.teacher_prompt_template.format(
            prompt=prompt, privileged_context=row["privileged_context"]
        )


def _sampling(args: Any, group_size: int) -> dict[str, Any]:
    """TRL's top_k 0 means none of it; the service's is -1."""
    return {
        "max_tokens": args.max_completion_length,
        "group_size": group_size,
        "sampling_temperature": args.temperature,
        "top_p": args.top_p,
        "top_k": args.top_k or -1,
    }
