"""Chats to the assistant's next message, whole or in chunks. May be called by any room of this process."""

import json
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from tinsmith.protocol.errors import BadRequest, Unsupported

from tinsmith_server.auth import Caller
from tinsmith_server.openai.answers import (
    Chat,
    ChatChoice,
    ChatChunk,
    ChatDelta,
    ChatLogprobs,
    ChatToken,
    Delta,
    Message,
    TopToken,
    Usage,
)
from tinsmith_server.openai.bodies import ChatRequest
from tinsmith_server.openai.generation import (
    Generation,
    PromptEnd,
    SampleEnd,
    Token,
    Wish,
    stop_reason,
    tokens_of,
)
from tinsmith_server.openai.naming import resolve
from tinsmith_server.openai.text import SampleText
from tinsmith_server.openai.vocabulary import Vocabulary
from tinsmith_server.service import Service


class Chatter:
    """One request, resolved."""

    def __init__(
        self,
        body: ChatRequest,
        vocabulary: Vocabulary,
        prompt: list[int],
        generation: Generation,
    ) -> None:
        self._body, self._vocabulary, self._prompt = body, vocabulary, prompt
        self._generation = generation
        self._id, self._created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

    @classmethod
    async def of(cls, service: Service, user: Caller, body: ChatRequest) -> "Chatter":
        """Raises what the request cannot be answered for."""
        body.check()
        model = await resolve(service, user, body.model)
        vocabulary = await service.vocabularies.of(model.card)
        prompt = await vocabulary.encode(_as_text(body, vocabulary), add_special_tokens=False)
        wish = Wish(
            params=body.params(body.limit, model.card.eos_token_ids),
            num_samples=body.num_samples,
            topk_sample_logprobs=body.top_logprobs or 0,
        )
        return cls(body, vocabulary, prompt, Generation(service, user, model, [prompt], wish))

    async def whole(self) -> Chat:
        async with self._generation.submitted(stream=False):
            [response] = await self._generation.responses()
        choices, sampled = [], 0
        for sample, sequence in enumerate(response.sequences):
            tokens = tokens_of(0, sample, sequence)
            sampled += len(tokens)
            text = self._text()
            content = "".join(text.push(one.id) for one in tokens) + text.end()
            choices.append(
                ChatChoice(
                    index=sample,
                    message=Message(content=content),
                    logprobs=self._logprobs(tokens),
                    finish_reason=stop_reason(sequence),
                )
            )
        return Chat(
            id=self._id,
            created=self._created,
            model=self._body.model,
            choices=choices,
            usage=Usage.of(len(self._prompt), sampled, response.prompt_cache_hit_tokens),
        )

    async def chunks(self) -> AsyncGenerator[ChatChunk, None]:
        """A first one with the role for each sample, then text as it comes."""
        texts = [self._text() for _ in range(self._body.num_samples)]
        begun: set[int] = set()
        sampled = cached = 0
        async with self._generation.submitted(stream=True):
            async for event in self._generation.events():
                if isinstance(event, PromptEnd):
                    cached = event.response.prompt_cache_hit_tokens
                    continue
                if event.sample not in begun:
                    begun.add(event.sample)
                    yield self._chunk(event.sample, Delta(role="assistant", content=""))
                if isinstance(event, SampleEnd):
                    if rest := texts[event.sample].end():
                        yield self._chunk(event.sample, Delta(content=rest))
                    yield self._chunk(event.sample, Delta(), reason=event.reason)
                    continue
                sampled += 1
                shown, logprobs = texts[event.sample].push(event.id), self._logprobs([event])
                if shown or logprobs:
                    yield self._chunk(event.sample, Delta(content=shown), logprobs)
        if self._body.wants_usage:
            usage = Usage.of(len(self._prompt), sampled, cached)
            yield self._answer([], usage)

    def _chunk(
        self,
        index: int,
        delta: Delta,
        logprobs: ChatLogprobs | None = None,
        reason: str | None = None,
    ) -> ChatChunk:
        choice = ChatDelta(index=index, delta=delta, logprobs=logprobs, finish_reason=reason)
        return self._answer([choice], None)

    def _answer(self, choices: list[ChatDelta], usage: Usage | None) -> ChatChunk:
        return ChatChunk(
            id=self._id,
            created=self._created,
            model=self._body.model,
            choices=choices,
            usage=usage,
        )

    def _text(self) -> SampleText:
        return SampleText(self._vocabulary, self._prompt, self._body.stops)

    def _logprobs(self, tokens: Sequence[Token]) -> ChatLogprobs | None:
        if not self._body.logprobs:
            return None
        return ChatLogprobs(
            content=[
                ChatToken(
                    **self._told(one.id, one.logprob),
                    top_logprobs=[TopToken(**self._told(*each)) for each in one.top or []],
                )
                for one in tokens
            ]
        )

    def _told(self, token: int, logprob: float) -> dict[str, Any]:
        raw = self._vocabulary.bytes_of(token)
        return {
            "token": self._vocabulary.text_of(token),
            "logprob": logprob,
            "bytes": list(raw) if raw is not None else None,
        }


def _as_text(body: ChatRequest, vocabulary: Vocabulary) -> str:
    continued = bool(body.continue_final_message)
    asked = body.add_generation_prompt
    return vocabulary.chat(
        [_message(one, f"messages[{index}]") for index, one in enumerate(body.messages)],
        tools=body.offered_tools,
        add_generation_prompt=not continued if asked is None else asked,
        continue_final_message=continued,
        variables=body.chat_template_kwargs or {},
    )


def _message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    """As templates read it: content as one text, arguments of a tool call as an object."""
    if not isinstance(message.get("role"), str):
        raise BadRequest(f"{where}.role: it is missing.")
    read = dict(message)
    if isinstance(message.get("content"), list):
        read["content"] = "".join(_part(one, f"{where}.content") for one in message["content"])
    elif not isinstance(message.get("content"), str | None):
        raise BadRequest(f"{where}.content: it is neither a text nor a list of parts.")
    if message.get("tool_calls"):
        read["tool_calls"] = [_call(one, where) for one in message["tool_calls"]]
    return read


def _part(part: Any, where: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, dict) else part
        raise Unsupported(f"{where}: parts of type {kind!r} are not supported by text models.")
    return str(part.get("text", ""))


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise BadRequest(f"{where}.tool_calls: each needs a function.")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except json.JSONDecodeError:
            raise BadRequest(f"{where}.tool_calls: arguments are not JSON.") from None
    return {**call, "function": {**function, "arguments": arguments}}
