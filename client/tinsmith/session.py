"""A client's session on the service: opened at first use, kept alive, finished at close."""

import asyncio
import itertools
from collections.abc import Mapping
from typing import Any

import msgspec

from tinsmith.exceptions import APIError
from tinsmith.protocol import bodies
from tinsmith.transport import Transport

_HEARTBEAT_SECONDS = 10
_SDK_VERSION = "tinsmith"


class ChunkLimits(msgspec.Struct, kw_only=True, frozen=True):
    """How the service wants a large batch cut."""

    fwdbwd_max_chunk_len: int
    fwdbwd_max_chunk_bytes_count: int


class Session:
    def __init__(
        self,
        transport: Transport,
        user_metadata: Mapping[str, str] | None,
        project_id: str | None,
        display_name: str | None,
    ) -> None:
        self.transport = transport
        self.run_numbers = itertools.count()
        self.sampler_numbers = itertools.count()
        self.loss_numbers = itertools.count()
        self._create = bodies.CreateSession(
            user_metadata=dict(user_metadata) if user_metadata else None,
            sdk_version=_SDK_VERSION,
            project_id=project_id,
            display_name=display_name,
        )
        self._opening: asyncio.Task[str] | None = None
        self._heartbeat: asyncio.Task[None] | None = None
        self._limits: ChunkLimits | None = None

    async def id(self) -> str:
        """Opened once, whoever asks first; a failed opening is tried again by the next caller."""
        if self._opening is None or (self._opening.done() and self._opening.exception()):
            self._opening = asyncio.create_task(self._open())
        return await asyncio.shield(self._opening)

    def opened(self) -> str | None:
        """Its id, if it has been opened."""
        made = self._opening
        return made.result() if made is not None and made.done() and not made.exception() else None

    async def _open(self) -> str:
        answer = await self.transport.post("/create_session", self._create)
        session_id = msgspec.json.decode(answer, type=bodies.SessionCreated).session_id
        self._heartbeat = asyncio.create_task(self._beat(session_id))
        return session_id

    async def _beat(self, session_id: str) -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT_SECONDS)
            try:
                await self.transport.post(
                    "/session_heartbeat", bodies.SessionRef(session_id=session_id)
                )
            except APIError as error:
                if getattr(error, "status_code", None) == 410:  # the session is over
                    return

    async def limits(self) -> ChunkLimits:
        if self._limits is None:
            answer = await self.transport.post("/client/config", {"sdk_version": _SDK_VERSION})
            self._limits = msgspec.json.decode(answer, type=ChunkLimits)
        return self._limits

    async def close(self, status: str, detail: str | None) -> None:
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        if self._opening is not None and not (self._opening.done() and self._opening.exception()):
            reason: dict[str, Any] = {"reason": {"type": status}, "detail": detail}
            await self.transport.post(f"/sessions/{await self._opening}/finish", reason)
        await self.transport.close()
