"""Checkpoints: listed, published, aged, fetched, copied, deleted."""

import os
import uuid

from tinsmith.futures import APIFuture
from tinsmith.protocol.download_bodies import CopyWeights, WeightsCopied
from tinsmith.rest_calls import RestCalls, checkpoint_address, segment, started
from tinsmith.types import CheckpointsListResponse, ExternalWeightsUrlsResponse, WeightsInfoResponse


class CheckpointCalls(RestCalls):
    def list_checkpoints(self, training_run_id: str) -> APIFuture[CheckpointsListResponse]:
        path = f"/training_runs/{segment(training_run_id)}/checkpoints"
        return self._get(path, CheckpointsListResponse)

    async def list_checkpoints_async(self, training_run_id: str) -> CheckpointsListResponse:
        return await self.list_checkpoints(training_run_id)

    def list_user_checkpoints(
        self, limit: int = 100, offset: int = 0
    ) -> APIFuture[CheckpointsListResponse]:
        return self._get("/checkpoints", CheckpointsListResponse, limit=limit, offset=offset)

    async def list_user_checkpoints_async(
        self, limit: int = 100, offset: int = 0
    ) -> CheckpointsListResponse:
        return await self.list_user_checkpoints(limit, offset)

    def get_weights_info_by_tinker_path(self, tinker_path: str) -> APIFuture[WeightsInfoResponse]:
        return self._post("/weights_info", {"tinker_path": tinker_path}, WeightsInfoResponse)

    def delete_checkpoint(self, training_run_id: str, checkpoint_id: str) -> APIFuture[None]:
        """`checkpoint_id` as listed: `weights/<name>` or `sampler_weights/<name>`."""
        return self.delete_checkpoint_from_tinker_path(
            f"tinker://{training_run_id}/{checkpoint_id}"
        )

    async def delete_checkpoint_async(self, training_run_id: str, checkpoint_id: str) -> None:
        return await self.delete_checkpoint(training_run_id, checkpoint_id)

    def delete_checkpoint_from_tinker_path(self, tinker_path: str) -> APIFuture[None]:
        return self._do("DELETE", checkpoint_address(tinker_path))

    async def delete_checkpoint_from_tinker_path_async(self, tinker_path: str) -> None:
        return await self.delete_checkpoint_from_tinker_path(tinker_path)

    def publish_checkpoint_from_tinker_path(self, tinker_path: str) -> APIFuture[None]:
        """Whoever knows its path may read it from now on."""
        return self._do("POST", f"{checkpoint_address(tinker_path)}/publish")

    async def publish_checkpoint_from_tinker_path_async(self, tinker_path: str) -> None:
        return await self.publish_checkpoint_from_tinker_path(tinker_path)

    def unpublish_checkpoint_from_tinker_path(self, tinker_path: str) -> APIFuture[None]:
        return self._do("DELETE", f"{checkpoint_address(tinker_path)}/publish")

    async def unpublish_checkpoint_from_tinker_path_async(self, tinker_path: str) -> None:
        return await self.unpublish_checkpoint_from_tinker_path(tinker_path)

    def set_checkpoint_ttl_from_tinker_path(
        self, tinker_path: str, ttl_seconds: int | None
    ) -> APIFuture[None]:
        """It is deleted so many seconds from now; None keeps it for good."""
        body = {"ttl_seconds": ttl_seconds}
        return self._do("PUT", f"{checkpoint_address(tinker_path)}/ttl", body)

    async def set_checkpoint_ttl_from_tinker_path_async(
        self, tinker_path: str, ttl_seconds: int | None
    ) -> None:
        return await self.set_checkpoint_ttl_from_tinker_path(tinker_path, ttl_seconds)

    def get_external_weights_urls(self, tinker_path: str) -> APIFuture[ExternalWeightsUrlsResponse]:
        """One link a file, which anybody may follow until it expires."""
        path = f"{checkpoint_address(tinker_path)}/external_weights_urls"
        return self._get(path, ExternalWeightsUrlsResponse)

    async def get_external_weights_urls_async(
        self, tinker_path: str
    ) -> ExternalWeightsUrlsResponse:
        return await self.get_external_weights_urls(tinker_path)

    def copy_weights(
        self,
        path: str,
        destination_project_id: str | None = None,
        *,
        ttl_seconds: int | None = None,
        weights_access_token: str | None = None,
    ) -> APIFuture[str]:
        """The path of a copy that is one's own, in a project of one's own (or TINKER_PROJECT_ID)."""
        project_id = destination_project_id or os.environ.get("TINKER_PROJECT_ID")
        if not project_id:
            raise ValueError("destination_project_id: give it, or set TINKER_PROJECT_ID.")
        body = CopyWeights(
            source_path=path, destination_project_id=project_id, ttl_seconds=ttl_seconds
        )
        headers = {"X-Idempotency-Key": str(uuid.uuid4())}
        if weights_access_token is not None:
            headers["X-Tinker-Weights-Access-Token"] = weights_access_token

        async def path_of_copy() -> str:
            copied = await self._post("/copy_weights", body, WeightsCopied, headers)
            return copied.tinker_path

        return started(path_of_copy())

    async def copy_weights_async(
        self,
        path: str,
        destination_project_id: str | None = None,
        *,
        ttl_seconds: int | None = None,
        weights_access_token: str | None = None,
    ) -> str:
        return await self.copy_weights(
            path,
            destination_project_id,
            ttl_seconds=ttl_seconds,
            weights_access_token=weights_access_token,
        )
