"""Where a user begins: one service, one session, and the clients that it makes."""

from collections.abc import Mapping
from types import TracebackType
from typing import Literal, Self

import msgspec

from tinsmith.custom_loss import LossHandle, PerDatumLoss, trace_loss
from tinsmith.futures import APIFuture, ClientFuture, start
from tinsmith.optimizers import OptimizerConfig
from tinsmith.protocol.loss_graph import CreateCustomLoss, LossGraph
from tinsmith.rest_client import RestClient
from tinsmith.sampling_client import SamplingClient
from tinsmith.session import Session
from tinsmith.training_client import TrainingClient, create_run
from tinsmith.transport import Transport
from tinsmith.types import GetServerCapabilitiesResponse, LoraConfig

Status = Literal["success", "errored", "interrupted"]


class ServiceClient:
    """A Tinsmith service, or any other that speaks Tinker's API.

    The address and the key come from the arguments, else from TINKER_BASE_URL and TINKER_API_KEY.
    Nothing is sent before the first call. As a context manager it finishes its session at the end.
    """

    def __init__(
        self,
        user_metadata: dict[str, str] | None = None,
        project_id: str | None = None,
        *,
        display_name: str | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        default_headers_overrides: Mapping[str, str] | None = None,
    ) -> None:
        self._transport = Transport(base_url, api_key, default_headers_overrides)
        self._project_id = project_id
        self._session = Session(self._transport, user_metadata, project_id, display_name)

    def get_server_capabilities(self) -> GetServerCapabilitiesResponse:
        return self.create_rest_client().get_server_capabilities().result()

    async def get_server_capabilities_async(self) -> GetServerCapabilitiesResponse:
        return await self.create_rest_client().get_server_capabilities()

    def create_lora_training_client(
        self,
        base_model: str,
        rank: int = 32,
        seed: int | None = None,
        train_mlp: bool = True,
        train_attn: bool = True,
        train_unembed: bool = True,
        user_metadata: dict[str, str] | None = None,
        optimizer: OptimizerConfig | None = None,
    ) -> ClientFuture[TrainingClient]:
        """A new run of a base model. Await it, ask for its result, or use it as the client itself."""
        lora = LoraConfig(
            rank=rank,
            seed=seed,
            train_mlp=train_mlp,
            train_attn=train_attn,
            train_unembed=train_unembed,
        )
        body = {
            "base_model": base_model,
            "lora_config": lora,
            "user_metadata": user_metadata,
            "optimizer_config": optimizer,
        }
        return self._new_run("/create_model", body)

    async def create_lora_training_client_async(
        self,
        base_model: str,
        rank: int = 32,
        seed: int | None = None,
        train_mlp: bool = True,
        train_attn: bool = True,
        train_unembed: bool = True,
        user_metadata: dict[str, str] | None = None,
        optimizer: OptimizerConfig | None = None,
    ) -> TrainingClient:
        return await self.create_lora_training_client(
            base_model, rank, seed, train_mlp, train_attn, train_unembed, user_metadata, optimizer
        )

    def create_training_client_from_state(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
        weights_access_token: str | None = None,
        optimizer: OptimizerConfig | None = None,
    ) -> ClientFuture[TrainingClient]:
        """A new run with the weights of a checkpoint and a fresh optimizer."""
        body = _state(path, base_model, user_metadata, weights_access_token)
        return self._new_run("/load_weights", body | {"optimizer_config": optimizer})

    async def create_training_client_from_state_async(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
        weights_access_token: str | None = None,
        optimizer: OptimizerConfig | None = None,
    ) -> TrainingClient:
        return await self.create_training_client_from_state(
            path, base_model, user_metadata, weights_access_token, optimizer
        )

    def create_training_client_from_state_with_optimizer(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
        weights_access_token: str | None = None,
    ) -> ClientFuture[TrainingClient]:
        """A new run that goes on exactly where the checkpoint was saved."""
        body = _state(path, base_model, user_metadata, weights_access_token)
        return self._new_run("/load_weights", body | {"optimizer": True})

    async def create_training_client_from_state_with_optimizer_async(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
        weights_access_token: str | None = None,
    ) -> TrainingClient:
        return await self.create_training_client_from_state_with_optimizer(
            path, base_model, user_metadata, weights_access_token
        )

    def create_sampling_client(
        self,
        model_path: str | None = None,
        base_model: str | None = None,
        *,
        record_stability_info: bool = False,
    ) -> ClientFuture[SamplingClient]:
        """A sampler of a checkpoint (`tinker://...`) or of a base model as it is."""
        if model_path is None and base_model is None:
            raise ValueError("create_sampling_client: give model_path or base_model.")
        made = SamplingClient.create(
            self._session,
            model_path=model_path,
            base_model=base_model,
            record_stability_info=record_stability_info,
        )
        return ClientFuture(start(made))

    async def create_sampling_client_async(
        self,
        model_path: str | None = None,
        base_model: str | None = None,
        *,
        record_stability_info: bool = False,
    ) -> SamplingClient:
        return await self.create_sampling_client(
            model_path, base_model, record_stability_info=record_stability_info
        )

    def create_custom_loss(
        self, fn: PerDatumLoss, input_ranks: Mapping[str, int]
    ) -> APIFuture[LossHandle]:
        """A loss for `forward_backward_custom` that the service computes; needs torch here.

        `fn(logprobs, *inputs)` is for one datum; its losses are summed. `input_ranks` says of each
        parameter whether it is a scalar (0), [N] (1) or [N, K] (2). ValueError when the service
        could not run it.
        """
        return APIFuture(start(self._create_loss(fn.__name__, trace_loss(fn, input_ranks))))

    def get_console_url(self) -> str:
        """The page of this session in the service's console; of all sessions before it is opened."""
        session_id = self._session.opened()
        page = f"{self._transport.base_url}/sessions"
        return page if session_id is None else f"{page}/{session_id}"

    def create_rest_client(self) -> RestClient:
        return RestClient(self._transport)

    def copy_weights(
        self, path: str, *, ttl_seconds: int | None = None, weights_access_token: str | None = None
    ) -> APIFuture[str]:
        """The path of a copy in this client's project."""
        return self.create_rest_client().copy_weights(
            path,
            self._project_id,
            ttl_seconds=ttl_seconds,
            weights_access_token=weights_access_token,
        )

    def close(self, status: Status = "success", detail: str | None = None) -> APIFuture[None]:
        """Finish the session: the service takes nothing more under it."""
        return APIFuture(start(self._session.close(status, detail)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end(error).result()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._end(error)

    def _end(self, error: BaseException | None) -> APIFuture[None]:
        if error is None:
            return self.close()
        status: Status = "errored" if isinstance(error, Exception) else "interrupted"
        return self.close(status, type(error).__name__)

    async def _create_loss(self, name: str, graph: LossGraph) -> LossHandle:
        session_id = await self._session.id()
        asked = CreateCustomLoss(
            session_id=session_id,
            custom_loss_seq_id=next(self._session.loss_numbers),
            name=name,
            inputs=graph.inputs,
            graph=graph.graph,
        )
        stub = msgspec.json.decode(await self._transport.post("/create_custom_loss", asked))
        made = msgspec.json.decode(await self._transport.result(stub["request_id"]))
        return LossHandle(name, tuple(graph.inputs), session_id, made["loss_id"])

    def _new_run(self, path: str, body: dict[str, object]) -> ClientFuture[TrainingClient]:
        number = next(self._session.run_numbers)
        return ClientFuture(start(create_run(self._session, path, body, number)))


def _state(
    path: str,
    base_model: str | None,
    user_metadata: dict[str, str] | None,
    weights_access_token: str | None,
) -> dict[str, object]:
    return {
        "path": path,
        "base_model": base_model,
        "user_metadata": user_metadata,
        "weights_access_token": weights_access_token,
    }
