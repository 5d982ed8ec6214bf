"""Examples, and what was said to them: by the student, by a teacher, or in the data."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tinsmith.distill.teacher import Prompt


@dataclass(frozen=True)
class Example:
    prompt: Prompt
    completion: str | Sequence[int] | None = None
    """For the share of GKD that the student does not complete."""
    teacher_prompt: Prompt | None = None
    """What the teacher reads in place of `prompt`: a demonstration, a longer prompt."""
    teacher: int = 0
    """Which of several."""


@dataclass(frozen=True)
class Rollout:
    """One completed prompt, in the student's tokens."""

    prompt: list[int]
    completion: list[int]
    logprobs: list[float] | None
    """log p of each token when the student sampled it; None for what it did not sample."""
    teacher_prompt: list[int] | None = None
    """The teacher's own prompt, in the teacher's tokens, where it is another."""
    teacher: int = 0
    source: str = "student"
    finished: bool = True

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.completion

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def column(rollout: Rollout, values: npt.ArrayLike) -> np.ndarray[Any, np.dtype[np.float32]]:
    """One number per target: 0 for the prompt's, `values` for the completion's."""
    found = np.zeros(len(rollout.tokens) - 1, np.float32)
    found[len(rollout.prompt) - 1 :] = values
    return found


def token_weights(
    rollouts: Sequence[Rollout], reduction: str, skip: int = 0
) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """1 for each scored token, or one over their number in the batch: the mean that TRL takes."""
    masks = [
        column(one, [float(index >= skip) for index in range(len(one.completion))])
        for one in rollouts
    ]
    count = sum(float(mask.sum()) for mask in masks)
    if not count:
        raise ValueError("batch: it has no completion token to learn from.")
    share = np.float32(1 / count if reduction == "mean" else 1)
    return [mask * share for mask in masks]
