"""What a request with teachers is checked for before it runs, and the lessons of its micro-batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.distill_config import DistillConfig, JSDConfig
from tinsmith_worker.engine.lessons import Lesson, Taught
from tinsmith_worker.engine.micro_batch import MicroBatch
from tinsmith_worker.engine.readings import Reading, Teacher, same_tokens, teacher_of
from tinsmith_worker.engine.values import Datum, InvalidInput


@dataclass(frozen=True, eq=False)
class LessonPlan:
    """One request: how its teachers read each datum."""

    config: DistillConfig
    readings: list[Reading]

    def lesson(self, batch: MicroBatch, device: torch.device) -> Lesson:
        data = batch.data
        scored = [datum.inputs["weights"] != 0 for datum in data]
        taught = Taught([self.readings[index] for index in batch.members], scored)
        assert isinstance(self.config, JSDConfig)
        sampled = _joined(data, "logprobs", np.float32, device) if _brings(data) else None
        return Lesson(
            self.config,
            taught,
            _joined(data, "weights", np.float32, device),
            _joined(data, "target_tokens", np.int64, device),
            sampled,
        )


def plan(
    data: Sequence[Datum], loss_fn: str, config: Any, model: BaseModel, teachers: Sequence[Teacher]
) -> LessonPlan | None:
    """None for a loss without teachers. Raises InvalidInput by datum."""
    if not isinstance(config, DistillConfig):
        return None
    _all_or_none(data, "logprobs")
    if isinstance(config, JSDConfig):
        if config.is_clip and not _brings(data):
            raise InvalidInput(
                "data: is_clip needs logprobs, those that the tokens were sampled with."
            )
        for teacher in teachers:
            _check_vocabulary(model, teacher, strict=config.vocab == "strict")
    readings = [
        same_tokens(datum, f"data[{index}]", teacher_of(datum, f"data[{index}]", teachers))
        for index, datum in enumerate(data)
    ]
    return LessonPlan(config, readings)


def _check_vocabulary(model: BaseModel, teacher: Teacher, *, strict: bool) -> None:
    """Both must mean the same by the ids that both have (Qwen pads 151,936 and 152,064 of them)."""
    sizes = model.vocab_size, teacher.model.vocab_size
    if strict and sizes[0] != sizes[1]:
        raise InvalidInput(
            f"loss_fn_config.vocab: strict, and {teacher.name} has {sizes[1]} tokens where the student "
            f"has {sizes[0]}; use vocab common, or x_distill_uld."
        )
    if teacher.model is not model and not model.shares_tokens_with(teacher.model):
        raise InvalidInput(
            f"loss_fn_config.teacher: {teacher.name} has another tokenizer than the student; use "
            "x_distill_uld."
        )


def _all_or_none(data: Sequence[Datum], name: str) -> None:
    if len({name in datum.inputs for datum in data}) > 1:
        raise InvalidInput(f"data: some datums have {name} and some have not; send it with all.")


def _brings(data: Sequence[Datum]) -> bool:
    return all("logprobs" in datum.inputs for datum in data)


def _joined(data: Sequence[Datum], name: str, dtype: Any, device: torch.device) -> Tensor:
    column = [datum.inputs[name].astype(dtype) for datum in data]
    return torch.from_numpy(np.concatenate(column)).to(device)
