"""A training run from the client's side: its ops leave in the order in which they were called."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np

from tinsmith.custom_loss import LossHandle, check_inputs
from tinsmith.encoding import cut, decode_forward_backward, encode_datum, encode_loss_config, join
from tinsmith.futures import APIFuture, ClientFuture, start, start_lasting
from tinsmith.optimizers import OptimParams, step_body
from tinsmith.protocol import wire_pb2 as pb
from tinsmith.protocol.tensors import encode_tensor
from tinsmith.sampling_client import SamplingClient
from tinsmith.session import Session
from tinsmith.tokenizers import fetch_tokenizer
from tinsmith.transport import PROTOBUF
from tinsmith.types import (
    AdamParams,
    Datum,
    ForwardBackwardOutput,
    GetInfoResponse,
    LoadWeightsResponse,
    LossFnType,
    OptimStepResponse,
    SamplingClientKind,
    SaveWeightsExternalResponse,
    SaveWeightsForSamplerResponse,
    SaveWeightsResponse,
    TensorData,
)

if TYPE_CHECKING:
    import torch

Answer = TypeVar("Answer")
LossConfig = Mapping[str, float | str]
CustomLoss = Callable[[list[Datum], list["torch.Tensor"]], tuple["torch.Tensor", dict[str, float]]]


class TrainingClient:
    """Made by ServiceClient. Its methods return at once; ops of one run take effect in call order."""

    def __init__(self, session: Session, model_id: str, info: GetInfoResponse) -> None:
        self.model_id = model_id
        self._session = session
        self._transport = session.transport
        self._info = info
        self._last_seq_id = 0
        self._turn = asyncio.Lock()  # first come, first served: the order of calls

    @property
    def base_url(self) -> str:
        """Of the service that holds this run."""
        return self._transport.base_url

    @property
    def api_key(self) -> str:
        return self._transport.api_key

    def get_console_url(self) -> str:
        """The page of this run in the service's console."""
        return f"{self.base_url}/training_runs/{self.model_id}"

    def forward(
        self,
        data: Sequence[Datum],
        loss_fn: LossFnType,
        loss_fn_config: LossConfig | None = None,
    ) -> APIFuture[ForwardBackwardOutput]:
        """The loss and its outputs, without a gradient."""
        return self._compute(data, loss_fn, loss_fn_config, forward_only=True)

    async def forward_async(
        self,
        data: Sequence[Datum],
        loss_fn: LossFnType,
        loss_fn_config: LossConfig | None = None,
    ) -> APIFuture[ForwardBackwardOutput]:
        return self.forward(data, loss_fn, loss_fn_config)

    def forward_backward(
        self,
        data: Sequence[Datum],
        loss_fn: LossFnType,
        loss_fn_config: LossConfig | None = None,
    ) -> APIFuture[ForwardBackwardOutput]:
        """The loss, its outputs, and its gradient added to what the run has accumulated."""
        return self._compute(data, loss_fn, loss_fn_config, forward_only=False)

    async def forward_backward_async(
        self,
        data: Sequence[Datum],
        loss_fn: LossFnType,
        loss_fn_config: LossConfig | None = None,
    ) -> APIFuture[ForwardBackwardOutput]:
        return self.forward_backward(data, loss_fn, loss_fn_config)

    def forward_backward_custom(
        self, data: Sequence[Datum], loss_fn: CustomLoss | LossHandle
    ) -> APIFuture[ForwardBackwardOutput]:
        """A loss of one's own over the logprobs of the targets.

        A handle of `create_custom_loss` is computed by the service, a function here, with torch.
        `loss_fn(data, logprobs)` gets one tensor per datum, of the shape of its `target_tokens`, and
        returns the loss and its metrics. It costs a forward more than a loss of the service: the
        gradient of any loss in the logprobs is that of cross_entropy with weights -dloss/dlogprob.
        """
        if isinstance(loss_fn, LossHandle):
            for index, datum in enumerate(data):
                check_inputs(loss_fn, datum.loss_fn_inputs, f"data[{index}]")
            config = {"loss_id": loss_fn.loss_id}
            return self._compute(data, "custom", config, forward_only=False)
        messages = [encode_datum(_with_zero_weights(datum)) for datum in data]
        return APIFuture(start_lasting(self._custom(list(data), messages, loss_fn)))

    async def forward_backward_custom_async(
        self, data: Sequence[Datum], loss_fn: CustomLoss | LossHandle
    ) -> APIFuture[ForwardBackwardOutput]:
        return self.forward_backward_custom(data, loss_fn)

    def optim_step(
        self,
        optim_params: OptimParams | None = None,
        *,
        adam_params: AdamParams | None = None,
    ) -> APIFuture[OptimStepResponse]:
        """One step of the run's optimizer along the accumulated gradient, which it clears."""
        if optim_params is not None and adam_params is not None:
            raise TypeError("optim_step: give optim_params or adam_params, not both.")
        params = optim_params or adam_params or AdamParams()
        return self._op("/optim_step", OptimStepResponse, **step_body(params))

    async def optim_step_async(
        self,
        optim_params: OptimParams | None = None,
        *,
        adam_params: AdamParams | None = None,
    ) -> APIFuture[OptimStepResponse]:
        return self.optim_step(optim_params, adam_params=adam_params)

    def save_state(
        self,
        name: str,
        ttl_seconds: int | None = None,
        overwrite: bool = False,
        user_metadata: dict[str, str] | None = None,
    ) -> APIFuture[SaveWeightsResponse]:
        """Weights and optimizer, under a name from which training can go on."""
        return self._op(
            "/save_weights",
            SaveWeightsResponse,
            path=name,
            ttl_seconds=ttl_seconds,
            overwrite=overwrite,
            user_metadata=user_metadata,
        )

    async def save_state_async(
        self,
        name: str,
        ttl_seconds: int | None = None,
        overwrite: bool = False,
        user_metadata: dict[str, str] | None = None,
    ) -> APIFuture[SaveWeightsResponse]:
        return self.save_state(name, ttl_seconds, overwrite, user_metadata)

    def load_state(
        self, path: str, weights_access_token: str | None = None
    ) -> APIFuture[LoadWeightsResponse]:
        """The weights of a checkpoint into this run, with a fresh optimizer."""
        return self._load(path, weights_access_token, optimizer=False)

    async def load_state_async(
        self, path: str, weights_access_token: str | None = None
    ) -> APIFuture[LoadWeightsResponse]:
        return self.load_state(path, weights_access_token)

    def load_state_with_optimizer(
        self, path: str, weights_access_token: str | None = None
    ) -> APIFuture[LoadWeightsResponse]:
        """The weights and the optimizer of a checkpoint into this run."""
        return self._load(path, weights_access_token, optimizer=True)

    async def load_state_with_optimizer_async(
        self, path: str, weights_access_token: str | None = None
    ) -> APIFuture[LoadWeightsResponse]:
        return self.load_state_with_optimizer(path, weights_access_token)

    def save_weights_for_sampler(
        self,
        name: str,
        ttl_seconds: int | None = None,
        user_metadata: dict[str, str] | None = None,
    ) -> APIFuture[SaveWeightsForSamplerResponse]:
        """Weights only, under a name that create_sampling_client takes."""
        return self._op(
            "/save_weights_for_sampler",
            SaveWeightsForSamplerResponse,
            path=name,
            ttl_seconds=ttl_seconds,
            user_metadata=user_metadata,
        )

    async def save_weights_for_sampler_async(
        self,
        name: str,
        ttl_seconds: int | None = None,
        user_metadata: dict[str, str] | None = None,
    ) -> APIFuture[SaveWeightsForSamplerResponse]:
        return self.save_weights_for_sampler(name, ttl_seconds, user_metadata)

    def save_weights_external(
        self,
        name: str,
        ttl_seconds: int | None = None,
        age_encryption_recipients: list[str] | None = None,
    ) -> APIFuture[SaveWeightsExternalResponse]:
        """A PEFT adapter to fetch by links (`RestClient.get_external_weights_urls`).

        With recipients (age or SSH public keys) only they can read its files.
        """
        return self._op(
            "/save_weights_external",
            SaveWeightsExternalResponse,
            path=name,
            ttl_seconds=ttl_seconds,
            age_encryption_recipients=age_encryption_recipients,
        )

    async def save_weights_external_async(
        self,
        name: str,
        ttl_seconds: int | None = None,
        age_encryption_recipients: list[str] | None = None,
    ) -> APIFuture[SaveWeightsExternalResponse]:
        return self.save_weights_external(name, ttl_seconds, age_encryption_recipients)

    def save_weights_and_get_sampling_client(
        self,
        name: str | None = None,
        *,
        record_stability_info: bool = False,
        kind: SamplingClientKind = "snapshot",
    ) -> ClientFuture[SamplingClient]:
        """A sampler of the weights as they are at this point of the run.

        Named, the weights are also kept as the checkpoint `sampler_weights/<name>`. An `inflight`
        sampler goes on with the weights of every later inflight save of the run.
        """
        if name is not None and kind != "snapshot":
            raise ValueError("name: inflight weights are not kept under a name; leave one out.")
        return ClientFuture(start_lasting(self._sampler(name, kind, record_stability_info)))

    async def save_weights_and_get_sampling_client_async(
        self,
        name: str | None = None,
        *,
        record_stability_info: bool = False,
        kind: SamplingClientKind = "snapshot",
    ) -> SamplingClient:
        return await self.save_weights_and_get_sampling_client(
            name, record_stability_info=record_stability_info, kind=kind
        )

    def create_sampling_client(
        self, model_path: str, *, record_stability_info: bool = False
    ) -> ClientFuture[SamplingClient]:
        made = SamplingClient.create(
            self._session, model_path=model_path, record_stability_info=record_stability_info
        )
        return ClientFuture(start(made))

    async def create_sampling_client_async(
        self, model_path: str, *, record_stability_info: bool = False
    ) -> SamplingClient:
        return await self.create_sampling_client(
            model_path, record_stability_info=record_stability_info
        )

    def get_info(self) -> GetInfoResponse:
        return self._info

    async def get_info_async(self) -> GetInfoResponse:
        return self._info

    def get_tokenizer(self) -> Any:
        """The base model's tokenizer, from the service; needs transformers on this machine."""
        transport = self._transport
        return fetch_tokenizer(transport.base_url, transport.api_key, self._info.model_name)

    def _compute(
        self,
        data: Sequence[Datum],
        loss_fn: str,
        loss_fn_config: LossConfig | None,
        forward_only: bool,
    ) -> APIFuture[ForwardBackwardOutput]:
        messages = [encode_datum(datum) for datum in data]
        template = pb.ForwardBackwardRequest(
            model_id=self.model_id,
            loss_fn=loss_fn,
            loss_fn_config_v2=encode_loss_config(loss_fn_config),
            forward_only=forward_only,
        )

        async def work() -> ForwardBackwardOutput:
            async with self._turn:
                requests = await self._send(messages, template)
            return await self._collect(requests)

        return APIFuture(start_lasting(work()))

    async def _send(
        self, messages: list[pb.Datum], template: pb.ForwardBackwardRequest
    ) -> list[str]:
        """The requests of the chunks. They may arrive in any order; their seq_ids order them."""
        limits = await self._session.limits()
        chunks = cut(messages, limits.fwdbwd_max_chunk_len, limits.fwdbwd_max_chunk_bytes_count)
        bodies = []
        for chunk in chunks:
            request = pb.ForwardBackwardRequest(seq_id=self._next_seq_id(), data=chunk)
            request.MergeFrom(template)
            bodies.append(request.SerializeToString())
        posts = [self._transport.post_message("/forward_backward", body) for body in bodies]
        return [_request_id(answer) for answer in await asyncio.gather(*posts)]

    async def _collect(self, requests: list[str]) -> ForwardBackwardOutput:
        polls = [self._transport.result(request_id, PROTOBUF) for request_id in requests]
        return join([decode_forward_backward(data) for data in await asyncio.gather(*polls)])

    async def _custom(
        self, data: list[Datum], messages: list[pb.Datum], loss_fn: CustomLoss
    ) -> ForwardBackwardOutput:
        template = pb.ForwardBackwardRequest(
            model_id=self.model_id, loss_fn="cross_entropy", forward_only=True
        )
        async with self._turn:  # to its end: what was called later comes after the gradient
            forward = await self._collect(await self._send(messages, template))
            gradients, metrics = await asyncio.to_thread(_loss_gradients, data, forward, loss_fn)
            for message, gradient in zip(messages, gradients, strict=True):
                message.loss_fn_inputs["weights"].CopyFrom(gradient)
            template.forward_only = False
            requests = await self._send(messages, template)
        output = await self._collect(requests)
        own = {name: value for name, value in output.metrics.items() if name != "loss:sum"}
        return ForwardBackwardOutput(
            output.loss_fn_output_type, output.loss_fn_outputs, own | metrics
        )

    def _op(self, url: str, answer: type[Answer], /, **body: Any) -> APIFuture[Answer]:
        return APIFuture(start_lasting(self._run_op(url, answer, body)))

    async def _run_op(self, path: str, answer: type[Answer], body: dict[str, Any]) -> Answer:
        async with self._turn:
            addressed = {"model_id": self.model_id, "seq_id": self._next_seq_id(), **body}
            request_id = _request_id(await self._transport.post(path, addressed))
        return msgspec.json.decode(await self._transport.result(request_id), type=answer)

    def _load(
        self, path: str, weights_access_token: str | None, optimizer: bool
    ) -> APIFuture[LoadWeightsResponse]:
        return self._op(
            "/load_weights",
            LoadWeightsResponse,
            path=path,
            optimizer=optimizer,
            weights_access_token=weights_access_token,
        )

    async def _sampler(self, name: str | None, kind: str, record: bool) -> SamplingClient:
        if name is not None:
            saved = await self._run_op(
                "/save_weights_for_sampler", SaveWeightsForSamplerResponse, {"path": name}
            )
            return await SamplingClient.create(
                self._session, model_path=saved.path, record_stability_info=record
            )
        number = next(self._session.sampler_numbers)
        asked = {"sampling_session_seq_id": number, "kind": kind}
        made = await self._run_op("/save_weights_for_sampler", _UnnamedSampler, asked)
        return SamplingClient(
            self._transport,
            made.sampling_session_id,
            self._info.model_name,
            record_stability_info=record,
        )

    def _next_seq_id(self) -> int:
        self._last_seq_id += 1
        return self._last_seq_id


class _UnnamedSampler(msgspec.Struct, kw_only=True, frozen=True):
    sampling_session_id: str


class _Stub(msgspec.Struct, kw_only=True, frozen=True):
    request_id: str


def _request_id(answer: bytes) -> str:
    return msgspec.json.decode(answer, type=_Stub).request_id


def _with_zero_weights(datum: Datum) -> Datum:
    """The forward needs weights of some value; the backward gets the real ones."""
    if "target_tokens" not in datum.loss_fn_inputs:
        raise ValueError("loss_fn_inputs.target_tokens: a custom loss needs it in every datum.")
    targets = datum.loss_fn_inputs["target_tokens"].to_numpy()
    weights = np.zeros(targets.shape, np.float32)
    return replace(datum, loss_fn_inputs={"target_tokens": targets, "weights": weights})


def _loss_gradients(
    data: list[Datum], forward: ForwardBackwardOutput, loss_fn: CustomLoss
) -> tuple[list[pb.Tensor], dict[str, float]]:
    """Per datum the weights -dloss/dlogprob, and the loss's own metrics."""
    import torch

    logprobs = [row["logprobs"].to_torch().requires_grad_(True) for row in forward.loss_fn_outputs]
    loss, metrics = loss_fn(data, logprobs)
    gradients = torch.autograd.grad(loss, logprobs, allow_unused=True, materialize_grads=True)
    weights = [TensorData.from_torch(-gradient).to_numpy() for gradient in gradients]
    return [encode_tensor(one) for one in weights], metrics


async def create_run(
    session: Session, path: str, body: dict[str, Any], model_seq_id: int
) -> TrainingClient:
    """Submit request 0 of a run, wait until the run stands, and ask what it became."""
    transport = session.transport
    addressed = {"session_id": await session.id(), "model_seq_id": model_seq_id, **body}
    stub = msgspec.json.decode(await transport.post(path, addressed), type=_RunStub)
    await transport.result(stub.request_id)
    info = await transport.post("/get_info", {"model_id": stub.model_id})
    return TrainingClient(session, stub.model_id, msgspec.json.decode(info, type=GetInfoResponse))


class _RunStub(_Stub, kw_only=True, frozen=True):
    model_id: str
