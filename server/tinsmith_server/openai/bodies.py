"""What OpenAI's clients send. A field that is not here is refused by name, never ignored.

Defaults are OpenAI's. Null means left out, because clients write it for what their user did not set.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from tinsmith.protocol.bodies import SamplingParams
from tinsmith.protocol.errors import BadRequest, Unsupported

MAX_SAMPLES = 128
MAX_PROMPTS = 1024
MAX_SEQUENCES = 4096
"""Of all prompts of a request together."""
MAX_TOP = 100
_LARGE = 1 << 31
_ABSENT: dict[str, tuple[Sequence[Any], str]] = {
    "presence_penalty": ((0,), "the sampler has no penalties"),
    "frequency_penalty": ((0,), "the sampler has no penalties"),
    "repetition_penalty": ((1,), "the sampler has no penalties"),
    "min_p": ((0,), "the sampler has no min_p; top_p and top_k are there"),
    "logit_bias": (({},), "the sampler has no biases"),
    "suffix": (("",), "models here continue a prompt and do not fill gaps"),
    "response_format": (({"type": "text"},), "the sampler follows no grammar"),
    "reasoning_effort": ((), "give chat_template_kwargs what the model's template reads"),
    "modalities": ((["text"],), "models here speak text alone"),
    "prediction": ((), "there is no use for a prediction here"),
}


class StreamOptions(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Padding against readers of traffic; off, or left out, is what happens."""


class Request(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What both endpoints take."""

    model: str = ""
    n: int | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Refused unless they ask for nothing:
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    min_p: float | None = None
    logit_bias: dict[str, float] | None = None
    # About the sender, nothing of the answer:
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    @property
    def num_samples(self) -> int:
        return 1 if self.n is None else self.n

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def check(self) -> None:
        """Raises BadRequest for what cannot be, and Unsupported for what is not here."""
        for name, (neutral, reason) in _ABSENT.items():
            value = getattr(self, name, None)
            if value is not None and value not in neutral:
                raise Unsupported(f"{name}: {reason}; leave it out.")
        for name in ("max_tokens", "max_completion_tokens", "top_k", "stop_token_ids"):
            value = getattr(self, name, None)
            for one in value if isinstance(value, list) else [value or 0]:
                if abs(one) >= _LARGE:
                    raise BadRequest(f"{name}: {one} is out of all bounds.")
        if not 1 <= self.num_samples <= MAX_SAMPLES:
            raise BadRequest(f"n: {self.n} is not from 1 to {MAX_SAMPLES}.")
        if self.stream_options and not self.stream:
            raise BadRequest("stream_options: they need stream to be true.")
        if self.stream_options and self.stream_options.include_obfuscation:
            raise Unsupported("stream_options.include_obfuscation: there is none; leave it out.")
        if "" in self.stops:
            raise BadRequest("stop: '' is no stop.")

    def params(self, max_tokens: int | None, eos_token_ids: Sequence[int]) -> SamplingParams:
        """As the queue takes them. A worker that is given stops ends at no others, so EOS is one."""
        ends = [] if self.ignore_eos else eos_token_ids
        return SamplingParams(
            max_tokens=max_tokens,
            seed=self.seed,
            stop=[*self.stops, *(self.stop_token_ids or []), *ends],
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=-1 if self.top_k is None else self.top_k,
            top_p=1.0 if self.top_p is None else self.top_p,
        )


class CompletionRequest(Request, kw_only=True, frozen=True, forbid_unknown_fields=True):
    prompt: str | list[str | int | list[int]] = ""
    max_tokens: int | None = None
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None
    add_special_tokens: bool | None = None

    def check(self) -> None:
        super().check()
        if self.best_of not in (None, self.num_samples):
            raise Unsupported("best_of: samples are not ranked here; leave it out and use n.")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_TOP:
            raise BadRequest(f"logprobs: {self.logprobs} is not from 0 to {MAX_TOP}.")
        if self.stream and self.echo and self.logprobs is not None:
            raise Unsupported("echo: with logprobs it cannot be streamed; leave stream out.")
        if self.max_tokens is not None and self.max_tokens < 0:
            raise BadRequest(f"max_tokens: {self.max_tokens} is not from 0.")
        if self.max_tokens == 0 and not self.echo:
            raise BadRequest("max_tokens: 0 asks for nothing without echo.")


class ChatRequest(Request, kw_only=True, frozen=True, forbid_unknown_fields=True):
    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    modalities: list[str] | None = None
    prediction: dict[str, Any] | None = None

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def offered_tools(self) -> list[dict[str, Any]] | None:
        """What the template shows the model."""
        return None if self.tool_choice == "none" else self.tools or None

    def check(self) -> None:
        super().check()
        if not self.messages:
            raise BadRequest("messages: give at least one.")
        if self.tool_choice not in (None, "auto", "none"):
            raise Unsupported("tool_choice: a model is not forced here; use 'auto' or 'none'.")
        if self.parallel_tool_calls is False:
            raise Unsupported("parallel_tool_calls: what a model calls is up to it; leave it out.")
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= MAX_TOP:
            raise BadRequest(f"top_logprobs: {self.top_logprobs} is not from 0 to {MAX_TOP}.")
        if self.top_logprobs and not self.logprobs:
            raise BadRequest("top_logprobs: it needs logprobs to be true.")
        for name in ("max_tokens", "max_completion_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise BadRequest(f"{name}: {value} is not at least 1.")
        if self.continue_final_message and self.add_generation_prompt:
            raise BadRequest("continue_final_message: not together with add_generation_prompt.")
