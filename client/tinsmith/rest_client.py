"""What has been trained and saved: looking it up, deleting it."""

from collections.abc import Coroutine
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from tinsmith.futures import APIFuture, start
from tinsmith.protocol.paths import TinkerPath
from tinsmith.transport import Transport
from tinsmith.types import (
    CheckpointsListResponse,
    GetSamplerResponse,
    GetServerCapabilitiesResponse,
    TrainingRun,
    TrainingRunsResponse,
    WeightsInfoResponse,
)

T = TypeVar("T")


class RestClient:
    """Made by ServiceClient. It opens no session; lists come newest first."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get_server_capabilities(self) -> APIFuture[GetServerCapabilitiesResponse]:
        return self._get("/get_server_capabilities", GetServerCapabilitiesResponse)

    def get_training_run(self, training_run_id: str) -> APIFuture[TrainingRun]:
        return self._get(f"/training_runs/{_segment(training_run_id)}", TrainingRun)

    async def get_training_run_async(self, training_run_id: str) -> TrainingRun:
        return await self.get_training_run(training_run_id)

    def get_training_run_by_tinker_path(self, tinker_path: str) -> APIFuture[TrainingRun]:
        return self.get_training_run(TinkerPath.parse(tinker_path, "tinker_path").run_id)

    async def get_training_run_by_tinker_path_async(self, tinker_path: str) -> TrainingRun:
        return await self.get_training_run_by_tinker_path(tinker_path)

    def list_training_runs(
        self, limit: int = 20, offset: int = 0
    ) -> APIFuture[TrainingRunsResponse]:
        return self._get(f"/training_runs?limit={limit}&offset={offset}", TrainingRunsResponse)

    async def list_training_runs_async(
        self, limit: int = 20, offset: int = 0
    ) -> TrainingRunsResponse:
        return await self.list_training_runs(limit, offset)

    def list_checkpoints(self, training_run_id: str) -> APIFuture[CheckpointsListResponse]:
        path = f"/training_runs/{_segment(training_run_id)}/checkpoints"
        return self._get(path, CheckpointsListResponse)

    async def list_checkpoints_async(self, training_run_id: str) -> CheckpointsListResponse:
        return await self.list_checkpoints(training_run_id)

    def list_user_checkpoints(
        self, limit: int = 100, offset: int = 0
    ) -> APIFuture[CheckpointsListResponse]:
        return self._get(f"/checkpoints?limit={limit}&offset={offset}", CheckpointsListResponse)

    async def list_user_checkpoints_async(
        self, limit: int = 100, offset: int = 0
    ) -> CheckpointsListResponse:
        return await self.list_user_checkpoints(limit, offset)

    def delete_checkpoint(self, training_run_id: str, checkpoint_id: str) -> APIFuture[None]:
        """`checkpoint_id` as listed: `weights/<name>` or `sampler_weights/<name>`."""
        return self.delete_checkpoint_from_tinker_path(
            f"tinker://{training_run_id}/{checkpoint_id}"
        )

    async def delete_checkpoint_async(self, training_run_id: str, checkpoint_id: str) -> None:
        return await self.delete_checkpoint(training_run_id, checkpoint_id)

    def delete_checkpoint_from_tinker_path(self, tinker_path: str) -> APIFuture[None]:
        path = TinkerPath.parse(tinker_path, "tinker_path")
        run = _segment(path.run_id)
        return _start(
            self._transport.delete(f"/training_runs/{run}/checkpoints/{path.checkpoint_id}")
        )

    async def delete_checkpoint_from_tinker_path_async(self, tinker_path: str) -> None:
        return await self.delete_checkpoint_from_tinker_path(tinker_path)

    def get_weights_info_by_tinker_path(self, tinker_path: str) -> APIFuture[WeightsInfoResponse]:
        async def ask() -> WeightsInfoResponse:
            answer = await self._transport.post("/weights_info", {"tinker_path": tinker_path})
            return msgspec.json.decode(answer, type=WeightsInfoResponse)

        return _start(ask())

    def get_sampler(self, sampler_id: str) -> APIFuture[GetSamplerResponse]:
        return self._get(f"/samplers/{_segment(sampler_id)}", GetSamplerResponse)

    async def get_sampler_async(self, sampler_id: str) -> GetSamplerResponse:
        return await self.get_sampler(sampler_id)

    def _get(self, path: str, answer: type[T]) -> APIFuture[T]:
        async def ask() -> T:
            return msgspec.json.decode(await self._transport.get(path), type=answer)

        return _start(ask())


def _start(work: Coroutine[Any, Any, T]) -> APIFuture[T]:
    return APIFuture(start(work))


def _segment(text: str) -> str:
    return quote(text, safe=":")
