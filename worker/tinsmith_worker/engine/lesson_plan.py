"""What a request with teachers is checked for before it runs, and the lessons of its micro-batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.distill_config import DistillConfig, JSDConfig, PGConfig, ULDConfig
from tinsmith_worker.engine.lessons import JSDLesson, Lesson, Pupil
from tinsmith_worker.engine.micro_batch import MicroBatch
from tinsmith_worker.engine.policy_lesson import PolicyLesson
from tinsmith_worker.engine.readings import (
    Reading,
    Rules,
    Teacher,
    other_tokens,
    same_tokens,
    teacher_of,
)
from tinsmith_worker.engine.taught import Taught
from tinsmith_worker.engine.uld_lesson import Names, ULDLesson
from tinsmith_worker.engine.values import Datum, InvalidInput

_BESIDE_TARGETS = ("logprobs", "advantages", "mixture_logprobs")


@dataclass(frozen=True, eq=False)
class LessonPlan:
    """One request: how its teachers read each datum."""

    config: DistillConfig
    model: BaseModel
    readings: list[Reading]

    @property
    def rows_apart(self) -> bool:
        """Whether datums must not share the rows of a common beginning."""
        return isinstance(self.config, ULDConfig) and self.config.mode != "chunk"

    def lesson(self, batch: MicroBatch) -> Lesson:
        device, data = self.model.device, batch.data
        readings = [self.readings[index] for index in batch.members]
        taught = Taught(readings)
        brought = {
            name: _joined(data, name, np.float32, device)
            for name in _BESIDE_TARGETS
            if name in data[0].inputs
        }
        pupil = Pupil(
            weights=_joined(data, "weights", np.float32, device),
            targets=_joined(data, "target_tokens", np.int64, device),
            sampled=brought.get("logprobs"),
            readings=readings,
            starts=np.cumsum([0, *(datum.tokens.size for datum in data)]),
        )
        if isinstance(self.config, JSDConfig):
            return JSDLesson(self.config, pupil, taught)
        if isinstance(self.config, ULDConfig) and self.config.mode != "chunk":
            return ULDLesson(self.config, pupil, taught, self.names)
        more = {"rewards": brought.get("advantages"), "mixture": brought.get("mixture_logprobs")}
        return PolicyLesson(_as_policy(self.config), pupil, taught, **more)

    @cached_property
    def names(self) -> dict[int, Names]:
        """By teacher, the ids of tokens that both vocabularies spell alike."""
        assert isinstance(self.config, ULDConfig)
        teachers = {id(reading.teacher): reading.teacher for reading in self.readings}
        if not self.config.hybrid:
            return {}
        return {key: _names(self.model, one.model) for key, one in teachers.items()}


def plan(
    data: Sequence[Datum], config: Any, model: BaseModel, teachers: Sequence[Teacher]
) -> LessonPlan | None:
    """None for a loss without teachers. Raises InvalidInput by datum."""
    if not isinstance(config, DistillConfig):
        return None
    for name in _BESIDE_TARGETS:
        if len({name in datum.inputs for datum in data}) > 1:
            raise InvalidInput(
                f"data: some datums have {name} and some have not; send it with all."
            )
    if isinstance(config, JSDConfig):
        _check_jsd(config, data, model, teachers)
    readings = [
        _reading(datum, f"data[{index}]", teachers, model, config)
        for index, datum in enumerate(data)
    ]
    made = LessonPlan(config, model, readings)
    if made.rows_apart and isinstance(config, ULDConfig) and config.hybrid:
        _check_names(made)
    return made


def _reading(
    datum: Datum, where: str, teachers: Sequence[Teacher], model: BaseModel, config: DistillConfig
) -> Reading:
    teacher = teacher_of(datum, where, teachers)
    if isinstance(config, ULDConfig):
        rules = Rules(
            skip_student_eos=bool(config.skip_student_eos),
            skip_teacher_eos=bool(config.skip_teacher_eos),
            later=config.mode != "chunk" and config.merge == "observed",
            positional=config.mode == "uld",
        )
        return other_tokens(datum, where, teacher, model, rules)
    if isinstance(config, JSDConfig) or (
        "align" not in datum.inputs and _same_vocabulary(model, teacher)
    ):
        return same_tokens(datum, where, teacher)
    assert isinstance(config, PGConfig)
    if key := config.needs_same_tokens:
        raise InvalidInput(
            f"loss_fn_config.{key}: it goes token by token, and {teacher.name} has other tokens."
        )
    return other_tokens(datum, where, teacher, model, Rules())


def _same_vocabulary(model: BaseModel, teacher: Teacher) -> bool:
    return teacher.model is model or model.shares_tokens_with(teacher.model)


def _check_jsd(
    config: JSDConfig, data: Sequence[Datum], model: BaseModel, teachers: Sequence[Teacher]
) -> None:
    if config.is_clip and "logprobs" not in data[0].inputs:
        raise InvalidInput("data: is_clip needs logprobs, those that the tokens were sampled with.")
    for teacher in teachers:
        sizes = model.vocab_size, teacher.model.vocab_size
        if config.vocab == "strict" and sizes[0] != sizes[1]:
            raise InvalidInput(
                f"loss_fn_config.vocab: strict, and {teacher.name} has {sizes[1]} tokens where the "
                f"student has {sizes[0]}; use vocab common, or x_distill_uld."
            )
        if not _same_vocabulary(model, teacher):
            raise InvalidInput(
                f"loss_fn_config.teacher: {teacher.name} has another tokenizer than the student; use "
                "x_distill_uld."
            )


def _check_names(made: LessonPlan) -> None:
    for reading in made.readings:
        if made.model.tokenizer is None or reading.teacher.model.tokenizer is None:
            raise InvalidInput("loss_fn_config.hybrid: it needs both tokenizers; set it to 0.")
    for names in made.names.values():
        if not names.teacher.numel():
            raise InvalidInput("loss_fn_config.hybrid: the tokenizers share no token; set it to 0.")


def _names(model: BaseModel, teacher: BaseModel) -> Names:
    ours, theirs = model.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    both = sorted(
        (theirs[name], ours[name])
        for name in ours.keys() & theirs.keys()
        if theirs[name] < teacher.vocab_size and ours[name] < model.vocab_size
    )
    ids = torch.tensor(both, dtype=torch.long, device=model.device).reshape(-1, 2)
    return Names(student=ids[:, 1], teacher=ids[:, 0])


def _as_policy(config: DistillConfig) -> PGConfig:
    if isinstance(config, PGConfig):
        return config
    return PGConfig(
        teacher=config.teacher,
        ce_weight=config.ce_weight,
        distill_weight=config.distill_weight,
        returns=config.returns,
    )


def _joined(data: Sequence[Datum], name: str, dtype: Any, device: torch.device) -> Tensor:
    column = [datum.inputs[name].astype(dtype) for datum in data]
    return torch.from_numpy(np.concatenate(column)).to(device)
