"""Who teaches, and how a prompt looks to a model: its tokenizer, chat template and system prompt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Message = Mapping[str, Any]
Prompt = str | Sequence[Message] | Sequence[int]
"""Text as it is, a chat, or tokens of the student."""
Rendering = Callable[[list[Message]], list[int]]


@dataclass(frozen=True)
class Teacher:
    """`name`: a base model of the service, a `tinker://` path, `base`, `self` or `ema:<rate>`.

    `base` is the student's base model, `self` the student as it is now, `ema:` its running average.
    A teacher has a renderer of its own: one model's chat template in front of another model shifts
    every score. `renderer` is None for the chat template of its tokenizer, the name of a renderer of
    tinker_cookbook, or a function from messages to tokens.
    """

    name: str
    renderer: str | Rendering | None = None
    system_prompt: str | None = None
    tokenizer: Any = field(default=None, repr=False)
    sampler: Any = field(default=None, repr=False)
    """A sampling client of it, where you have one already."""

    @property
    def of_the_run(self) -> bool:
        return self.name in ("base", "self") or self.name.startswith("ema:")


@dataclass(frozen=True)
class Renderer:
    tokenizer: Any
    rendering: str | Rendering | None = None
    system_prompt: str | None = None
    template_arguments: Mapping[str, Any] = field(default_factory=dict)

    def tokens(self, prompt: Prompt) -> list[int]:
        """Of a prompt, up to where the model is to go on."""
        if isinstance(prompt, str):
            return list(self.tokenizer.encode(self._with_system(prompt)))
        if all(isinstance(token, int) for token in prompt):
            return list(prompt)  # type: ignore[arg-type]
        messages: list[Message] = [dict(message) for message in prompt]  # type: ignore[arg-type]
        if self.system_prompt is not None:
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        return self._chat(messages)

    def _with_system(self, text: str) -> str:
        return text if self.system_prompt is None else f"{self.system_prompt}\n\n{text}"

    def _chat(self, messages: list[Message]) -> list[int]:
        if callable(self.rendering):
            return list(self.rendering(messages))
        if self.rendering is not None:
            return _cookbook(self.rendering, self.tokenizer, messages)
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(
                "prompt: it is a chat, and this model's tokenizer has no chat template; give the "
                "Teacher or the Distiller a renderer, or text as a prompt."
            )
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **self.template_arguments
        )
        return list(self.tokenizer.encode(text, add_special_tokens=False))


def _cookbook(name: str, tokenizer: Any, messages: list[Message]) -> list[int]:
    try:
        from tinker_cookbook import renderers
    except ImportError as error:
        raise ValueError(
            f"renderer: {name!r} is a name of tinker_cookbook's, which is not installed; install it, "
            "or give a function from messages to tokens."
        ) from error
    built = renderers.get_renderer(name, tokenizer).build_generation_prompt(messages)
    return list(built.to_ints())
