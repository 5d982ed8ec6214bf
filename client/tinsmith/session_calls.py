"""Sessions: listed, found, moved to another project, traced; and the samplers that they made."""

import asyncio

import msgspec

from tinsmith.exceptions import TinkerError
from tinsmith.futures import APIFuture
from tinsmith.rest_calls import AccessScope, RestCalls, segment, started
from tinsmith.types import (
    GetSamplerResponse,
    GetSessionResponse,
    ListSessionsResponse,
    SessionSearchRequest,
    SessionSearchResponse,
)

_TRACE_POLL_SECONDS = 5


class SessionCalls(RestCalls):
    def list_sessions(
        self, limit: int = 20, offset: int = 0, access_scope: AccessScope = "owned"
    ) -> APIFuture[ListSessionsResponse]:
        return self._get(
            "/sessions",
            ListSessionsResponse,
            limit=limit,
            offset=offset,
            access_scope=access_scope,
        )

    async def list_sessions_async(
        self, limit: int = 20, offset: int = 0, access_scope: AccessScope = "owned"
    ) -> ListSessionsResponse:
        return await self.list_sessions(limit, offset, access_scope)

    def get_session(
        self, session_id: str, access_scope: AccessScope = "owned"
    ) -> APIFuture[GetSessionResponse]:
        path = f"/sessions/{segment(session_id)}"
        return self._get(path, GetSessionResponse, access_scope=access_scope)

    async def get_session_async(
        self, session_id: str, access_scope: AccessScope = "owned"
    ) -> GetSessionResponse:
        return await self.get_session(session_id, access_scope)

    def search_sessions(self, request: SessionSearchRequest) -> APIFuture[SessionSearchResponse]:
        """One page; `next_cursor` is the `cursor` of the request for the next."""
        return self._post("/sessions/search", request, SessionSearchResponse)

    def assign_session_project(self, session_id: str, project_id: str) -> APIFuture[None]:
        """Its runs go with it."""
        body = {"project_id": project_id}
        return self._do("PUT", f"/sessions/{segment(session_id)}/project", body)

    async def assign_session_project_async(self, session_id: str, project_id: str) -> None:
        return await self.assign_session_project(session_id, project_id)

    def export_session_trace(self, session_id: str) -> APIFuture[str]:
        """The link of a trace of its requests, which ui.perfetto.dev opens."""
        return started(self._trace(session_id))

    async def export_session_trace_async(self, session_id: str) -> str:
        return await self.export_session_trace(session_id)

    def get_sampler(self, sampler_id: str) -> APIFuture[GetSamplerResponse]:
        return self._get(f"/samplers/{segment(sampler_id)}", GetSamplerResponse)

    async def get_sampler_async(self, sampler_id: str) -> GetSamplerResponse:
        return await self.get_sampler(sampler_id)

    async def _trace(self, session_id: str) -> str:
        while True:
            path = f"/sessions/{segment(session_id)}/trace_export"
            export = await self._get(path, _TraceExport)
            if export.url is not None:
                return export.url
            if export.status == "failed":
                raise TinkerError(f"The trace of {session_id} failed: {export.error}")
            await asyncio.sleep(_TRACE_POLL_SECONDS)


class _TraceExport(msgspec.Struct, kw_only=True, frozen=True):
    status: str
    url: str | None = None
    error: str | None = None
