"""A request's prompts on their way through the queue, where they are sampling jobs like any others.

Whoever leaves before the end cancels what is left: its slots are free one decode step later. Nothing of
a request stays in Redis when it is over, and what it took is counted for the organization's session.
"""

import asyncio
import contextlib
import secrets
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
from tinsmith.protocol import keys
from tinsmith.protocol import wire_pb2 as pb
from tinsmith.protocol.bodies import SamplingParams
from tinsmith.protocol.errors import BadRequest, Unavailable
from tinsmith.protocol.jobs import DrawnToken, Failure, Job, Kind, Result, SampleJob, encode

from tinsmith_server.auth import Caller
from tinsmith_server.limits import Bounds
from tinsmith_server.openai.naming import Model
from tinsmith_server.sampling.routes import most_tokens
from tinsmith_server.service import Service

_LOOK_AGAIN_SECONDS = 20.0
Top = list[tuple[int, float]]


class Failed(Exception):
    """The worker could not answer, and it is not the caller's doing."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked of every prompt of a request."""

    params: SamplingParams
    num_samples: int = 1
    prompt_logprobs: bool = False
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0


@dataclass(frozen=True)
class Token:
    """Drawn for sample `sample` of prompt `prompt`; `top` if alternatives were asked for."""

    prompt: int
    sample: int
    id: int
    logprob: float
    top: Top | None


@dataclass(frozen=True)
class SampleEnd:
    prompt: int
    sample: int
    reason: str
    """stop or length"""


@dataclass(frozen=True)
class PromptEnd:
    """All samples of a prompt have ended."""

    prompt: int
    response: pb.SampleResponse


Event = Token | SampleEnd | PromptEnd


class Generation:
    """In the queue while its context is entered."""

    def __init__(
        self, service: Service, user: Caller, model: Model, prompts: Sequence[list[int]], wish: Wish
    ) -> None:
        self._service, self._user, self._model = service, user, model
        self._prompts, self._wish = prompts, wish
        self._line = ""
        """Stands where a sampler's id stands: one of its own for every request."""
        self._request_ids: list[str] = []
        self._pending = set(range(len(prompts)))
        self._seen = [[0] * wish.num_samples for _ in prompts]
        """How many tokens of each sample have been handed on."""

    @contextlib.asynccontextmanager
    async def submitted(self, *, stream: bool) -> AsyncIterator["Generation"]:
        context = self._model.card.max_context_length
        for prompt in self._prompts:
            if len(prompt) >= context:  # before it is carried anywhere
                raise BadRequest(
                    f"prompt: {len(prompt)} tokens leave no room in the model's context of {context}."
                )
        session = await self._service.openai_sessions.get(self._user)
        self._line = f"{session.id}:openai:{uuid.uuid4().hex}"
        self._request_ids = [f"{self._line}:{index}" for index in range(len(self._prompts))]
        await self._service.allowances.check_month(self._user, session.project_id)
        bounds = await self._service.bounds(self._user, session.project_id, self._line)
        try:
            for index in range(len(self._prompts)):
                await self._submit(index, self._service.feed.process if stream else None, bounds)
            yield self
        finally:
            # A task of its own: who hangs up is cancelled, and may not wait for anything any more.
            self._service.spawn(self._leave())

    async def _submit(self, index: int, tokens_to: str | None, bounds: Bounds) -> None:
        seed, params = self._wish.params.seed, self._wish.params
        body = SampleJob(
            base_model=self._model.card.name,
            adapter_prefix=self._model.adapter_prefix,
            prompt=self._prompts[index],
            num_samples=self._wish.num_samples,
            params=msgspec.structs.replace(params, seed=None),
            seed=secrets.randbits(63) if seed is None else seed % (1 << 63),
            prompt_logprobs=self._wish.prompt_logprobs,
            topk_prompt_logprobs=self._wish.topk_prompt_logprobs,
            topk_sample_logprobs=self._wish.topk_sample_logprobs,
            tokens_to=tokens_to,
        )
        job = Job(
            request_id=self._request_ids[index],
            run_id=self._line,
            seq_id=index,
            kind=Kind.SAMPLE,
            body=encode(body),
            num_tokens=most_tokens(body),
        )
        await self._service.bus.submit_sample(
            self._user.organization_id, body.base_model, job, 0, bounds, width=body.num_samples
        )

    # Reading

    async def responses(self) -> list[pb.SampleResponse]:
        """Of every prompt, in order."""
        return list(
            await asyncio.gather(*(self._response(index) for index in range(len(self._prompts))))
        )

    async def events(self) -> AsyncIterator[Event]:
        """As they come; each sample's tokens in order, and each prompt's end after all of it."""
        queue: asyncio.Queue[DrawnToken | PromptEnd | Exception] = asyncio.Queue()
        with self._service.feed.reading(self._request_ids, queue):
            ends = [
                asyncio.create_task(self._tell_end(index, queue))
                for index in range(len(self._prompts))
            ]
            try:
                unended = len(ends)
                while unended:
                    for event in self._in_order(await queue.get()):
                        unended -= isinstance(event, PromptEnd)
                        yield event
            finally:
                for one in ends:
                    one.cancel()

    async def _tell_end(self, index: int, queue: "asyncio.Queue[Any]") -> None:
        try:
            queue.put_nowait(PromptEnd(index, await self._response(index)))
        except (BadRequest, Unavailable, Failed) as error:
            queue.put_nowait(error)

    def _in_order(self, news: DrawnToken | PromptEnd | Exception) -> list[Event]:
        if isinstance(news, Exception):
            raise news
        if isinstance(news, PromptEnd):
            return self._rest(news)
        prompt = int(news.request_id.rpartition(":")[2])
        if news.position != self._seen[prompt][news.sample]:
            return []  # known already, or one before it was missed: both come with the result
        self._seen[prompt][news.sample] += 1
        return [Token(prompt, news.sample, news.token, news.logprob, news.top)]

    def _rest(self, end: PromptEnd) -> list[Event]:
        events: list[Event] = []
        for sample, sequence in enumerate(end.response.sequences):
            known = self._seen[end.prompt][sample]
            events += tokens_of(end.prompt, sample, sequence)[known:]
            self._seen[end.prompt][sample] = 1 << 62
            events.append(SampleEnd(end.prompt, sample, stop_reason(sequence)))
        return [*events, end]

    async def _response(self, index: int) -> pb.SampleResponse:
        result = await self._result(self._request_ids[index])
        self._pending.discard(index)
        if result.failed:
            failure = msgspec.json.decode(result.data, type=Failure)
            if failure.category == "user":
                raise BadRequest(failure.error.removeprefix("sampling_params."))
            raise Failed(failure.error)
        return pb.SampleResponse.FromString(result.data)

    async def _result(self, request_id: str) -> Result:
        bus, name = self._service.bus, self._model.card.name
        while True:
            result = await bus.wait(request_id, _LOOK_AGAIN_SECONDS)
            if result is not None:
                return result
            await bus.beat(self._line.partition(":")[0])
            if await bus.future(request_id) is None:
                raise Unavailable("The queue has lost this request; ask again.")
            if bus.draining:
                raise Unavailable("This API process is leaving; ask again.")
            if not await bus.workers_of(name):
                raise Unavailable(f"No worker that holds {name} is up just now; ask again later.")

    # Leaving

    async def _leave(self) -> None:
        bus = self._service.bus
        for index in sorted(self._pending):
            if await bus.cancel(self._request_ids[index]):
                await self._count_what_was_drawn(index)
        await bus.redis.delete(
            keys.completions(self._line, 0),
            *(keys.result(one) for one in self._request_ids),
            *(keys.future(one) for one in self._request_ids),
        )

    async def _count_what_was_drawn(self, index: int) -> None:
        """A cancelled request has no result to count; what its client saw is not a gift."""
        drawn = sum(self._seen[index])
        if not drawn:
            return
        hour = int(datetime.now(UTC).replace(minute=0, second=0, microsecond=0).timestamp())
        session_id = self._line.partition(":")[0]
        whose = f"{hour}|{self._user.organization_id}|{session_id}"
        counts = {"sampling_prefill": len(self._prompts[index]), "sampling_sample": drawn}
        for kind, tokens in counts.items():
            field = f"{whose}|{kind}|{self._model.card.name}"
            await self._service.bus.redis.hincrby(keys.USAGE, field, tokens)


def tokens_of(prompt: int, sample: int, sequence: pb.SampledSequence) -> list[Token]:
    ids = np.frombuffer(sequence.tokens, "<i4").tolist()
    logprobs = np.frombuffer(sequence.logprobs, "<f4").tolist()
    tops: Sequence[Top | None] = top_rows(sequence.topk_sampled_logprobs) or [None] * len(ids)
    return [Token(prompt, sample, *row) for row in zip(ids, logprobs, tops, strict=True)]


def top_rows(topk: pb.TopkLogprobs) -> list[Top]:
    """A row per position: (token, log-probability), the likeliest first."""
    shape = (topk.length, topk.k)
    ids = np.frombuffer(topk.token_ids, "<i4").reshape(shape).tolist()
    logprobs = np.frombuffer(topk.logprobs, "<f4").reshape(shape).tolist()
    return [list(zip(*row, strict=True)) for row in zip(ids, logprobs, strict=True)]


def stop_reason(sequence: pb.SampledSequence) -> str:
    return "stop" if sequence.stop_reason == pb.STOP_REASON_STOP else "length"
