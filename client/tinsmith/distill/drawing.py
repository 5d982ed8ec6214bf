"""Completing a batch of examples: which of them by the student, which by the teacher or the data."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tinsmith.distill.connection import types_of
from tinsmith.distill.methods import GKD, GOLD, Method, PromptDistillation
from tinsmith.distill.rollout import Example, Rollout
from tinsmith.distill.teachers import Staff, Student


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How completions are drawn. Seeds follow from `seed`, the step and the place in the batch."""

    max_tokens: int
    group_size: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    stop: str | Sequence[str] | Sequence[int] | None = None
    seed: int = 0

    def parameters(self, types: Any, step: int, place: int, room: int | None) -> Any:
        return types.SamplingParams(
            max_tokens=self.max_tokens if room is None else min(self.max_tokens, room),
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=self.stop,
            seed=random.Random(f"{self.seed}/{step}/{place}").getrandbits(31),
        )


@dataclass(frozen=True)
class Drawn:
    """Completions under way."""

    parts: Sequence[Callable[[], list[Rollout]]]
    sampler: Any

    def collect(self) -> list[Rollout]:
        return [rollout for part in self.parts for rollout in part()]


def draw(
    examples: Sequence[Example],
    step: int,
    sampler: Any,
    method: Method,
    sampling: Sampling,
    student: Student,
    staff: Staff,
    by_student: bool | None = None,
) -> Drawn:
    """Sends all requests; nothing is awaited. `by_student` says who completes whatever the method says."""
    own = _completed_by_student(len(examples), step, method, sampling.seed)
    if by_student is not None:
        own = [by_student] * len(examples)
    seq_kd = isinstance(method, PromptDistillation) or getattr(method, "seq_kd", False)
    parts = []
    for place, (example, student_completes) in enumerate(zip(examples, own, strict=True)):
        prompt = student.renderer.tokens(example.prompt)
        teacher_prompt = staff[example.teacher].prompt_tokens(example, prompt)
        if student_completes:
            client, asked, source = sampler, prompt, "student"
        elif seq_kd and by_student is None:
            member = staff[example.teacher]
            _check_same(member)
            client, asked, source = member.sampler(sampler), teacher_prompt or prompt, "teacher"
        else:
            parts.append(_given(example, prompt, teacher_prompt, student))
            continue
        types = types_of(client)
        future = client.sample(
            types.ModelInput.from_ints(asked),
            sampling.group_size,
            sampling.parameters(types, step, place, _room(student, max(prompt, asked, key=len))),
        )
        parts.append(_sampled(future, prompt, teacher_prompt, example.teacher, source))
    return Drawn(parts, sampler)


def _room(student: Student, prompt: Sequence[int]) -> int | None:
    """Tokens for a completion: one less than the context has, so that all of them can be scored."""
    if student.context is None:
        return None
    room = student.context - len(prompt) - 1
    if room < 1:
        raise ValueError(
            f"examples: a prompt of {len(prompt)} tokens fills the model's context of {student.context}."
        )
    return room


def _completed_by_student(count: int, step: int, method: Method, seed: int) -> list[bool]:
    """An exact share over the run, spread evenly; or a coin for the batch, as TRL."""
    if isinstance(method, PromptDistillation):
        return [False] * count
    if not isinstance(method, GKD | GOLD) or method.lmbda == 1:
        return [True] * count
    if method.mix == "batch":
        return [random.Random(f"{seed}/{step}/mix").random() <= method.lmbda] * count
    places = range(step * count, (step + 1) * count)
    share = method.lmbda
    return [
        math.floor((place + 1) * share + 1e-9) > math.floor(place * share + 1e-9)
        for place in places
    ]


def _check_same(member: Any) -> None:
    if not member.same_tokens:
        raise ValueError(
            f"teacher: {member.teacher.name} has another tokenizer, so what it says are not the student's "
            "tokens; give completions as text."
        )


def _given(
    example: Example, prompt: list[int], teacher_prompt: list[int] | None, student: Student
) -> Callable[[], list[Rollout]]:
    if example.completion is None:
        raise ValueError(
            "examples: lmbda is below 1, and an example has no completion; give one, or set seq_kd."
        )
    if isinstance(example.completion, str):
        tokenizer = student.tokenizer
        tokens = list(tokenizer.encode(example.completion, add_special_tokens=False))
        if tokenizer.eos_token_id is not None:
            tokens.append(tokenizer.eos_token_id)
    else:
        tokens = list(example.completion)
    made = Rollout(prompt, tokens, None, teacher_prompt, example.teacher, "data")
    return lambda: [made]


def _sampled(
    future: Any,
    prompt: list[int],
    teacher_prompt: list[int] | None,
    teacher: int,
    source: str,
) -> Callable[[], list[Rollout]]:
    def collect() -> list[Rollout]:
        return [
            Rollout(
                prompt,
                list(sequence.tokens),
                list(sequence.logprobs) if source == "student" else None,
                teacher_prompt,
                teacher,
                source,
                sequence.stop_reason == "stop",
            )
            for sequence in future.result().sequences
        ]

    return collect
