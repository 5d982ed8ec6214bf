"""A sampler from the client's side: many samples in flight, one request that waits for them all."""

import asyncio
import base64
import itertools
from typing import Any, Self

import msgspec

from tinsmith.encoding import decode_sample
from tinsmith.exceptions import APIStatusError, TinkerError
from tinsmith.futures import APIFuture, start
from tinsmith.protocol import bodies
from tinsmith.session import Session
from tinsmith.tokenizers import fetch_tokenizer
from tinsmith.transport import PROTOBUF, Transport
from tinsmith.types import ModelInput, SampleResponse, SamplingParams, TensorData

_GONE = 410
_CLONE_STRIDE = 10**9


class SamplingClient:
    """Made by ServiceClient or TrainingClient. Its weights never change."""

    def __init__(
        self,
        transport: Transport,
        sampling_session_id: str,
        base_model: str,
        *,
        record_stability_info: bool = False,
        clone: bool = False,
    ) -> None:
        self.sampling_session_id = sampling_session_id
        self._base_model = base_model
        self._record = {"record_stability_info": True} if record_stability_info else {}
        self._transport = transport
        self._joining = asyncio.Lock()
        self._place = None if clone else _Place(transport, sampling_session_id, 0)

    @classmethod
    async def create(
        cls,
        session: Session,
        *,
        model_path: str | None = None,
        base_model: str | None = None,
        record_stability_info: bool = False,
    ) -> Self:
        transport = session.transport
        asked = bodies.CreateSamplingSession(
            session_id=await session.id(),
            sampling_session_seq_id=next(session.sampler_numbers),
            model_path=model_path,
            base_model=base_model,
        )
        made = msgspec.json.decode(
            await transport.post("/create_sampling_session", asked),
            type=bodies.SamplingSessionCreated,
        )
        found = msgspec.json.decode(
            await transport.get(f"/samplers/{made.sampling_session_id}"), type=bodies.Sampler
        )
        return cls(
            transport,
            made.sampling_session_id,
            found.base_model,
            record_stability_info=record_stability_info,
        )

    def sample(
        self,
        prompt: ModelInput,
        num_samples: int,
        sampling_params: SamplingParams,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
        target_prompt_logprobs: TensorData | None = None,
        prompt_alt_tokens_k: int = 0,
        prompt_logprobs_last_n: int | None = None,
    ) -> APIFuture[SampleResponse]:
        """`num_samples` continuations of the prompt, each with the logprobs of its tokens.

        Cancelling `.future()` stops the sample on the service.
        """
        asked = {
            "sampling_session_id": self.sampling_session_id,
            "prompt": prompt,
            "num_samples": num_samples,
            "sampling_params": sampling_params,
            "prompt_logprobs": include_prompt_logprobs,
            "topk_prompt_logprobs": topk_prompt_logprobs,
            "topk_sample_logprobs": topk_sample_logprobs,
            "prompt_alt_tokens_k": prompt_alt_tokens_k,
            "prompt_logprobs_last_n": prompt_logprobs_last_n,
        }
        if target_prompt_logprobs is not None:
            asked["target_prompt_logprobs"] = {
                "data": target_prompt_logprobs.data,
                "dtype": target_prompt_logprobs.dtype,
                "shape": target_prompt_logprobs.shape,
            }
        return APIFuture(start(self._sample(asked)))

    async def sample_async(
        self,
        prompt: ModelInput,
        num_samples: int,
        sampling_params: SamplingParams,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
        target_prompt_logprobs: TensorData | None = None,
        prompt_alt_tokens_k: int = 0,
        prompt_logprobs_last_n: int | None = None,
    ) -> SampleResponse:
        """As `sample`, awaited."""
        return await self.sample(
            prompt,
            num_samples,
            sampling_params,
            include_prompt_logprobs,
            topk_prompt_logprobs,
            topk_sample_logprobs,
            target_prompt_logprobs,
            prompt_alt_tokens_k,
            prompt_logprobs_last_n,
        )

    def compute_logprobs(
        self, prompt: ModelInput, prompt_logprobs_last_n: int | None = None
    ) -> APIFuture[list[float | None]]:
        """log p of every prompt token given those before it; None for the first."""
        return APIFuture(start(self._logprobs(prompt, prompt_logprobs_last_n)))

    async def compute_logprobs_async(
        self, prompt: ModelInput, prompt_logprobs_last_n: int | None = None
    ) -> list[float | None]:
        return await self.compute_logprobs(prompt, prompt_logprobs_last_n)

    def get_sampler_handle(self) -> str:
        """Text from which another process makes a client of the same sampler. It holds no key."""
        handle = _Handle(
            base_url=self._transport.base_url,
            sampling_session_id=self.sampling_session_id,
            base_model=self._base_model,
            record_stability_info=bool(self._record),
        )
        return base64.urlsafe_b64encode(msgspec.json.encode(handle)).decode()

    @staticmethod
    def from_sampler_handle(handle: str, *, api_key: str | None = None) -> "SamplingClient":
        """With TINKER_API_KEY when no key is given. ValueError when it is no handle of this client."""
        try:
            found = msgspec.json.decode(base64.urlsafe_b64decode(handle), type=_Handle)
        except (ValueError, msgspec.DecodeError):
            raise ValueError("handle: not one of tinsmith's get_sampler_handle.") from None
        return SamplingClient(
            Transport(found.base_url, api_key),
            found.sampling_session_id,
            found.base_model,
            record_stability_info=found.record_stability_info,
            clone=True,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its handle: the key is the other process's."""
        return SamplingClient.from_sampler_handle, (self.get_sampler_handle(),)

    def get_base_model(self) -> str:
        return self._base_model

    async def get_base_model_async(self) -> str:
        return self._base_model

    def get_tokenizer(self) -> Any:
        """The base model's tokenizer, from the service; needs transformers on this machine."""
        return fetch_tokenizer(self._transport.base_url, self._transport.api_key, self._base_model)

    async def _logprobs(self, prompt: ModelInput, last_n: int | None) -> list[float | None]:
        response = await self._sample(
            {
                "sampling_session_id": self.sampling_session_id,
                "prompt": prompt,
                "sampling_params": SamplingParams(max_tokens=1),
                "prompt_logprobs": True,
                "prompt_logprobs_last_n": last_n,
            }
        )
        assert response.prompt_logprobs is not None
        return response.prompt_logprobs

    async def _own_place(self) -> "_Place":
        """A clone asks for its number before its first sample, so that no two take the same."""
        async with self._joining:
            if self._place is None:
                asked = bodies.JoinSamplingSession(sampling_session_id=self.sampling_session_id)
                answer = await self._transport.post("/join_sampling_session", asked)
                number = msgspec.json.decode(answer, type=bodies.SamplingSessionJoined)
                self._place = _Place(
                    self._transport, self.sampling_session_id, number.client_counter
                )
        return self._place

    async def _sample(self, asked: dict[str, Any]) -> SampleResponse:
        place = await self._own_place()
        while True:
            body = asked | self._record | {"seq_id": next(place.numbers)}
            stub = msgspec.json.decode(
                await self._transport.post("/asample", body), type=_SampleStub
            )
            try:
                await place.completions.wait(stub.request_id)
                data = await self._transport.result(stub.request_id, PROTOBUF)
            except asyncio.CancelledError:
                await self._transport.post("/cancel_future", {"request_id": stub.request_id})
                raise
            except APIStatusError as error:
                if error.status_code != _GONE:
                    raise
                continue  # the service lost it: a sample may simply be asked for again
            return decode_sample(data, stub.sample_sequence_ids)


class _SampleStub(msgspec.Struct, kw_only=True, frozen=True):
    request_id: str
    sample_sequence_ids: list[str]


class _Handle(msgspec.Struct, kw_only=True, frozen=True):
    base_url: str
    sampling_session_id: str
    base_model: str
    record_stability_info: bool = False


class _Place:
    """Where one client of a sampler numbers its requests: clone n from n billions on (wire: 6.8)."""

    def __init__(self, transport: Transport, sampling_session_id: str, clone: int) -> None:
        self.numbers = itertools.count(clone * _CLONE_STRIDE)
        self.completions = _Completions(transport, sampling_session_id, clone)


class _Completions:
    """Tells which samples have finished, with one held request however many are in flight."""

    def __init__(self, transport: Transport, sampling_session_id: str, clone: int) -> None:
        self._transport = transport
        self._target = bodies.SamplerTarget(
            sampling_session_id=sampling_session_id, cloned_sampler_id=clone
        )
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._early: set[str] = set()  # finished before anybody waited for them
        self._cursor = 0
        self._following: asyncio.Task[None] | None = None

    async def wait(self, request_id: str) -> None:
        if request_id in self._early:
            self._early.discard(request_id)
            return
        landed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = landed
        if self._following is None or self._following.done():
            self._following = asyncio.create_task(self._follow())
        try:
            await landed
        finally:
            self._waiting.pop(request_id, None)

    async def _follow(self) -> None:
        try:
            while self._waiting:
                asked = {"target": self._target, "prev_cursor": self._cursor}
                answer = await self._transport.poll("/retrieve_futures", asked)
                self._land(msgspec.json.decode(answer, type=bodies.Completions))
        except TinkerError as error:
            for landed in self._waiting.values():
                if not landed.done():
                    landed.set_exception(error)

    def _land(self, found: bodies.Completions) -> None:
        self._cursor = found.cursor
        for completion in found.completions:
            landed = self._waiting.pop(completion.request_id, None)
            if landed is None:
                self._early.add(completion.request_id)
            elif not landed.done():
                landed.set_result(None)
