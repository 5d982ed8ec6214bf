"""Prompts to completions, whole or in chunks. May be called by any room of this process.

With `echo` and `logprobs` this scores prompts: a pure prefill, the same code as compute_logprobs.
"""

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import numpy as np
from tinsmith.protocol import wire_pb2 as pb
from tinsmith.protocol.errors import BadRequest

from tinsmith_server.auth import Caller
from tinsmith_server.openai.answers import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Usage,
)
from tinsmith_server.openai.bodies import MAX_PROMPTS, MAX_SEQUENCES, CompletionRequest
from tinsmith_server.openai.generation import (
    Generation,
    PromptEnd,
    SampleEnd,
    Token,
    Top,
    Wish,
    stop_reason,
    tokens_of,
    top_rows,
)
from tinsmith_server.openai.naming import resolve
from tinsmith_server.openai.text import SampleText
from tinsmith_server.openai.vocabulary import Vocabulary
from tinsmith_server.service import Service

_DEFAULT_MAX_TOKENS = 16


@dataclass(frozen=True)
class Scored:
    """A token with its log-probability; None where nothing precedes it."""

    id: int
    logprob: float | None
    top: Top | None


class Completer:
    """One request, resolved."""

    def __init__(
        self,
        body: CompletionRequest,
        vocabulary: Vocabulary,
        prompts: list[list[int]],
        generation: Generation,
    ) -> None:
        self._body, self._vocabulary, self._prompts = body, vocabulary, prompts
        self._generation = generation
        self._id, self._created = f"cmpl-{uuid.uuid4().hex}", int(time.time())

    @classmethod
    async def of(cls, service: Service, user: Caller, body: CompletionRequest) -> "Completer":
        """Raises what the request cannot be answered for."""
        body.check()
        model = await resolve(service, user, body.model)
        vocabulary = await service.vocabularies.of(model.card)
        prompts = await _prompts(body, vocabulary, model.card.vocab_size)
        limit = _DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
        score = bool(body.echo) and body.logprobs is not None
        wish = Wish(
            params=body.params(max(limit, 1), model.card.eos_token_ids),
            num_samples=body.num_samples,
            prompt_logprobs=score,
            topk_prompt_logprobs=(body.logprobs or 0) if score else 0,
            topk_sample_logprobs=body.logprobs or 0,
        )
        return cls(body, vocabulary, prompts, Generation(service, user, model, prompts, wish))

    async def whole(self) -> Completion:
        async with self._generation.submitted(stream=False):
            responses = await self._generation.responses()
        choices, sampled, cached = [], 0, 0
        for prompt, response in enumerate(responses):
            cached += response.prompt_cache_hit_tokens
            for sample, sequence in enumerate(response.sequences):
                tokens = tokens_of(prompt, sample, sequence)
                tokens = [] if self._body.max_tokens == 0 else tokens
                sampled += len(tokens)
                index = prompt * self._body.num_samples + sample
                reason = "length" if self._body.max_tokens == 0 else stop_reason(sequence)
                choices.append(self._choice(index, prompt, response, tokens, reason))
        return self._answer(choices, self._usage(sampled, cached))

    def _choice(
        self, index: int, prompt: int, response: pb.SampleResponse, tokens: list[Token], reason: str
    ) -> CompletionChoice:
        text = self._text(prompt)
        shown = "".join(text.push(one.id) for one in tokens) + text.end()
        scored = [Scored(one.id, one.logprob, one.top) for one in tokens]
        if self._body.echo:
            shown = self._echo(prompt) + shown
            scored = [*_scored_prompt(self._prompts[prompt], response), *scored]
        logprobs = self._logprobs(scored, 0) if self._body.logprobs is not None else None
        return CompletionChoice(index=index, text=shown, logprobs=logprobs, finish_reason=reason)

    async def chunks(self) -> AsyncGenerator[Completion, None]:
        count = self._body.num_samples
        texts = [self._text(prompt) for prompt in range(len(self._prompts)) for _ in range(count)]
        offsets = [0] * len(texts)
        sampled = cached = 0
        async with self._generation.submitted(stream=True):
            if self._body.echo:
                for index in range(len(texts)):
                    yield self._chunk(index, self._echo(index // count))
            async for event in self._generation.events():
                if isinstance(event, PromptEnd):
                    cached += event.response.prompt_cache_hit_tokens
                    continue
                index = event.prompt * count + event.sample
                if isinstance(event, SampleEnd):
                    yield self._chunk(index, texts[index].end(), reason=event.reason)
                    continue
                sampled += 1
                shown, logprobs = texts[index].push(event.id), None
                if self._body.logprobs is not None:
                    scored = [Scored(event.id, event.logprob, event.top)]
                    logprobs = self._logprobs(scored, offsets[index])
                    offsets[index] += len(self._vocabulary.text_of(event.id))
                if shown or logprobs:
                    yield self._chunk(index, shown, logprobs)
        if self._body.wants_usage:
            yield self._answer([], self._usage(sampled, cached))

    def _chunk(
        self,
        index: int,
        text: str,
        logprobs: CompletionLogprobs | None = None,
        reason: str | None = None,
    ) -> Completion:
        choice = CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=reason)
        return self._answer([choice], None)

    def _answer(self, choices: list[CompletionChoice], usage: Usage | None) -> Completion:
        return Completion(
            id=self._id,
            created=self._created,
            model=self._body.model,
            choices=choices,
            usage=usage,
        )

    def _usage(self, sampled: int, cached: int) -> Usage:
        return Usage.of(sum(len(prompt) for prompt in self._prompts), sampled, cached)

    def _text(self, prompt: int) -> SampleText:
        return SampleText(self._vocabulary, self._prompts[prompt], self._body.stops)

    def _echo(self, prompt: int) -> str:
        return self._vocabulary.decode(self._prompts[prompt], skip_special_tokens=True)

    def _logprobs(self, scored: Sequence[Scored], offset: int) -> CompletionLogprobs:
        texts = [self._vocabulary.text_of(one.id) for one in scored]
        offsets = [offset]
        for text in texts[:-1]:
            offsets.append(offsets[-1] + len(text))
        return CompletionLogprobs(
            tokens=texts,
            token_logprobs=[one.logprob for one in scored],
            top_logprobs=[self._top(one) for one in scored],
            text_offset=offsets[: len(texts)],
        )

    def _top(self, scored: Scored) -> dict[str, float] | None:
        """By name, with the token itself; two tokens of one text are told apart by their ids."""
        if scored.logprob is None:
            return None
        found: dict[str, float] = {}
        for token, logprob in [*(scored.top or []), (scored.id, scored.logprob)]:
            name = self._vocabulary.name_of(token)
            if found.get(name, logprob) != logprob:
                name = f"token_id:{token}"
            found[name] = logprob
        return found


def _scored_prompt(prompt: list[int], response: pb.SampleResponse) -> list[Scored]:
    logprobs: Sequence[float] = np.frombuffer(response.prompt_logprobs, "<f4").tolist()
    tops: Sequence[Top | None] = top_rows(response.topk_prompt_logprobs) or [None] * len(prompt)
    rows = zip(prompt[1:], logprobs[1:], tops[1:], strict=False)
    return [Scored(prompt[0], None, None), *(Scored(*row) for row in rows)]


async def _prompts(
    body: CompletionRequest, vocabulary: Vocabulary, vocab_size: int
) -> list[list[int]]:
    """A text, a list of texts, a list of ids, or a list of lists of ids."""
    given = body.prompt
    if isinstance(given, str):
        given = [given]
    elif given and all(isinstance(one, int) for one in given):
        given = [[one for one in given if isinstance(one, int)]]
    if not 1 <= len(given) <= MAX_PROMPTS:
        raise BadRequest(f"prompt: {len(given)} prompts are not from 1 to {MAX_PROMPTS}.")
    if len(given) * body.num_samples > MAX_SEQUENCES:
        raise BadRequest(f"n: {len(given)} prompts of {body.n} samples are over {MAX_SEQUENCES}.")
    special = body.add_special_tokens is not False
    prompts: list[list[int]] = []
    for one in given:
        if isinstance(one, int):
            raise BadRequest("prompt: it mixes ids and texts; send one kind.")
        if isinstance(one, str):
            one = await vocabulary.encode(one, add_special_tokens=special)
        bad = next((token for token in one if not 0 <= token < vocab_size), None)
        if bad is not None:
            raise BadRequest(f"prompt: token id {bad} is not from 0 to {vocab_size - 1}.")
        prompts.append(one)
    return prompts
