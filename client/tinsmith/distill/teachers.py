"""The teachers of one run: their samplers and tokenizers, found when they are first needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tinsmith.distill.alignment import decode, plain_text, spelled_alike
from tinsmith.distill.connection import Connection, resolved
from tinsmith.distill.rollout import Example, Rollout
from tinsmith.distill.teacher import Renderer, Teacher
from tinsmith.service_client import ServiceClient
from tinsmith.tokenizers import fetch_tokenizer


@dataclass(frozen=True)
class Student:
    """What must be known of the run that learns."""

    base_model: str
    renderer: Renderer
    types: Any
    context: int | None = None
    """Tokens that it can read."""

    @property
    def tokenizer(self) -> Any:
        return self.renderer.tokenizer


class Staff:
    """All teachers. Rollouts name theirs by its index."""

    def __init__(
        self, teachers: Sequence[Teacher], student: Student, connection: Connection
    ) -> None:
        if not teachers:
            raise ValueError("teacher: give at least one.")
        self._service: ServiceClient | None = None
        self._connection = connection
        self.members = [_Member(teacher, student, self) for teacher in teachers]

    def __getitem__(self, index: int) -> "_Member":
        if not 0 <= index < len(self.members):
            raise ValueError(f"teacher: {index} is not from 0 to {len(self.members) - 1}.")
        return self.members[index]

    @property
    def spelled(self) -> str:
        """As loss_fn_config takes them."""
        return "|".join(member.teacher.name for member in self.members)

    def service(self) -> ServiceClient:
        if self._service is None:
            self._service = self._connection.service()
        return self._service

    def tokenizer(self, base_model: str) -> Any:
        if "tokenizers" not in self._connection.extensions:
            raise ValueError(
                f"teacher: this service keeps no tokenizers, so that of {base_model} cannot be compared; "
                "give Teacher(tokenizer=...)."
            )
        return fetch_tokenizer(self._connection.base_url, self._connection.api_key, base_model)

    def context(self, base_model: str) -> int | None:
        return self._connection.contexts.get(base_model)

    def close(self) -> None:
        if self._service is not None:
            self._service.close().result()


class _Member:
    def __init__(self, teacher: Teacher, student: Student, staff: Staff) -> None:
        self.teacher = teacher
        self._student = student
        self._staff = staff

    def sampler(self, current: Any) -> Any:
        """Its sampling client; `current` is the student's."""
        if self.teacher.name == "self":
            return current
        return self._own_sampler

    @cached_property
    def _own_sampler(self) -> Any:
        teacher = self.teacher
        if teacher.sampler is not None:
            return teacher.sampler
        if teacher.name.startswith("ema:"):
            raise ValueError(
                f"teacher: {teacher.name} has no sampler of its own: it can be used with GKD and SDFT on a "
                "service that offers x_distill_jsd."
            )
        if teacher.name.startswith("tinker://"):
            made = self._staff.service().create_sampling_client(model_path=teacher.name)
        else:
            base = self._student.base_model if teacher.name == "base" else teacher.name
            made = self._staff.service().create_sampling_client(base_model=base)
        return resolved(made)

    @cached_property
    def base_model(self) -> str:
        if self.teacher.of_the_run:
            return self._student.base_model
        if self.teacher.name.startswith("tinker://") or self.teacher.sampler is not None:
            found: str = self._own_sampler.get_base_model()
            return found
        return self.teacher.name

    @property
    def context(self) -> int | None:
        return self._staff.context(self.base_model)

    @cached_property
    def renderer(self) -> Renderer:
        told = self.teacher
        tokenizer = told.tokenizer or self._known_tokenizer
        rendering = told.renderer or (
            self._student.renderer.rendering if self.same_tokens else None
        )
        arguments = self._student.renderer.template_arguments
        system = told.system_prompt or self._student.renderer.system_prompt
        return Renderer(tokenizer, rendering, system, arguments)

    @cached_property
    def _known_tokenizer(self) -> Any:
        if self.base_model == self._student.base_model:
            return self._student.tokenizer
        return self._staff.tokenizer(self.base_model)

    @cached_property
    def same_tokens(self) -> bool:
        """Whether a token id means the same to it and to the student."""
        theirs = self.teacher.tokenizer or self._known_tokenizer
        ours = self._student.tokenizer
        return theirs is ours or bool(theirs.get_vocab() == ours.get_vocab())

    def prompt_tokens(self, example: Example, student_prompt: list[int]) -> list[int] | None:
        """Its own prompt, where it is not the student's."""
        asked = example.prompt if example.teacher_prompt is None else example.teacher_prompt
        if isinstance(asked, str) or not all(isinstance(token, int) for token in asked):
            found = self.renderer.tokens(asked)
        elif self.same_tokens or example.teacher_prompt is not None:
            found = list(asked)  # type: ignore[arg-type]
        else:
            found = self.renderer.tokens(decode(self._student.tokenizer, student_prompt))
        return None if self.same_tokens and found == student_prompt else found

    def text_tokens(self, student_tokens: list[int]) -> list[int]:
        """The same text in its own tokens."""
        text = decode(self._student.tokenizer, student_tokens)
        return list(self.renderer.tokenizer.encode(text, add_special_tokens=False))

    def completion_tokens(self, rollout: Rollout) -> list[int]:
        """A completion as it reads it; one that ended ends with its own end of text."""
        if self.same_tokens:
            return rollout.completion
        found = self.text_tokens(rollout.completion)
        end = self.renderer.tokenizer.eos_token_id
        ended = rollout.finished and rollout.completion[-1:] == [
            self._student.tokenizer.eos_token_id
        ]
        return [*found, end] if ended and end is not None else found

    def sequence(self, rollout: Rollout) -> list[int]:
        """All that there is to read of a rollout."""
        prompt = rollout.prompt if rollout.teacher_prompt is None else rollout.teacher_prompt
        return prompt + self.completion_tokens(rollout)

    def align(self, rollout: Rollout) -> list[tuple[int, int, int, int]] | None:
        """Targets of the student and tokens of `sequence` that spell the same: (s0, s1, t0, t1).

        None where the service finds them by itself, from the bytes: of a completion that is text.
        """
        if self.same_tokens or plain_text(self._student.tokenizer, rollout.completion):
            return None
        theirs = self.completion_tokens(rollout)
        s, t = len(rollout.prompt) - 1, len(self.sequence(rollout)) - len(theirs)
        pairs = spelled_alike(
            self._student.tokenizer, rollout.completion, self.renderer.tokenizer, theirs
        )
        return [(s + a.start, s + a.stop, t + b.start, t + b.stop) for a, b in pairs]

    def scorable(self, rollout: Rollout) -> list[int]:
        """What of it fits: to score tokens takes room for one more."""
        whole = self.sequence(rollout)
        return whole if self.context is None else whole[: self.context - 1]
