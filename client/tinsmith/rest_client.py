"""What has been trained, saved and asked for: looking it up, and changing what is kept."""

import base64

import msgspec

from tinsmith.admin_client import AdminClient
from tinsmith.checkpoint_calls import CheckpointCalls
from tinsmith.futures import APIFuture
from tinsmith.protocol.account_bodies import TokenIssued
from tinsmith.rest_calls import AccessScope, parsed, segment, started
from tinsmith.session_calls import SessionCalls
from tinsmith.types import (
    GetServerCapabilitiesResponse,
    TrainingRun,
    TrainingRunsResponse,
    WhoamiResponse,
)


class RestClient(CheckpointCalls, SessionCalls, AdminClient):
    """Made by ServiceClient, or from an address and a key. Lists come newest first."""

    def get_server_capabilities(self) -> APIFuture[GetServerCapabilitiesResponse]:
        return self._get("/get_server_capabilities", GetServerCapabilitiesResponse)

    def get_training_run(
        self, training_run_id: str, access_scope: AccessScope = "owned"
    ) -> APIFuture[TrainingRun]:
        path = f"/training_runs/{segment(training_run_id)}"
        return self._get(path, TrainingRun, access_scope=access_scope)

    async def get_training_run_async(
        self, training_run_id: str, access_scope: AccessScope = "owned"
    ) -> TrainingRun:
        return await self.get_training_run(training_run_id, access_scope)

    def get_training_run_by_tinker_path(
        self, tinker_path: str, access_scope: AccessScope = "owned"
    ) -> APIFuture[TrainingRun]:
        return self.get_training_run(parsed(tinker_path).run_id, access_scope)

    async def get_training_run_by_tinker_path_async(
        self, tinker_path: str, access_scope: AccessScope = "owned"
    ) -> TrainingRun:
        return await self.get_training_run_by_tinker_path(tinker_path, access_scope)

    def list_training_runs(
        self,
        limit: int = 20,
        offset: int = 0,
        access_scope: AccessScope = "owned",
        project_id: str | None = None,
    ) -> APIFuture[TrainingRunsResponse]:
        return self._get(
            "/training_runs",
            TrainingRunsResponse,
            limit=limit,
            offset=offset,
            access_scope=access_scope,
            project_id=project_id,
        )

    async def list_training_runs_async(
        self,
        limit: int = 20,
        offset: int = 0,
        access_scope: AccessScope = "owned",
        project_id: str | None = None,
    ) -> TrainingRunsResponse:
        return await self.list_training_runs(limit, offset, access_scope, project_id)

    def whoami(self) -> APIFuture[WhoamiResponse]:
        """Whose key this is, as the token says for which it is exchanged."""

        async def ask() -> WhoamiResponse:
            issued = await self._post("/auth/token", {}, TokenIssued)
            return _identity(issued.jwt)

        return started(ask())


class _Claims(msgspec.Struct, kw_only=True, frozen=True):
    sub: str
    org_id: str
    email: str | None = None


def _identity(token: str) -> WhoamiResponse:
    """From the claims alone: the service that issued it just now need not be doubted."""
    payload = token.split(".")[1]
    data = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
    claims = msgspec.json.decode(data, type=_Claims)
    organization = f"tml:organization:{claims.org_id}"
    return WhoamiResponse(user_urn=claims.sub, org_urn=organization, email=claims.email or None)
