"""What OpenAI's clients read, field for field."""

import msgspec


class PromptDetails(msgspec.Struct, kw_only=True, frozen=True):
    cached_tokens: int


class Usage(msgspec.Struct, kw_only=True, frozen=True):
    """Tokens; a prompt counts once, however many samples it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails

    @classmethod
    def of(cls, prompt: int, completion: int, cached: int) -> "Usage":
        details = PromptDetails(cached_tokens=cached)
        return cls(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=details,
        )


class CompletionLogprobs(msgspec.Struct, kw_only=True, frozen=True):
    """An entry per token; None for the first of an echoed prompt, which nothing precedes."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, kw_only=True, frozen=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None


class Completion(msgspec.Struct, kw_only=True, frozen=True):
    """Whole, or a chunk of a stream."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TopToken(msgspec.Struct, kw_only=True, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None


class ChatToken(msgspec.Struct, kw_only=True, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopToken]


class ChatLogprobs(msgspec.Struct, kw_only=True, frozen=True):
    content: list[ChatToken]


class Message(msgspec.Struct, kw_only=True, frozen=True):
    role: str = "assistant"
    content: str


class ChatChoice(msgspec.Struct, kw_only=True, frozen=True):
    index: int
    message: Message
    logprobs: ChatLogprobs | None
    finish_reason: str


class Chat(msgspec.Struct, kw_only=True, frozen=True):
    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    role: str | None = None
    content: str | None = None


class ChatDelta(msgspec.Struct, kw_only=True, frozen=True):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatChunk(msgspec.Struct, kw_only=True, frozen=True):
    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatDelta]
    usage: Usage | None = None


class ModelEntry(msgspec.Struct, kw_only=True, frozen=True):
    id: str
    object: str = "model"
    created: int
    owned_by: str


class ModelList(msgspec.Struct, kw_only=True, frozen=True):
    object: str = "list"
    data: list[ModelEntry]
