"""Who is asking. A key is looked up once, then remembered until it is revoked or a minute old."""

import asyncio
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import update
from tinsmith.protocol.errors import Unauthorized

from tinsmith_server.accounts import keys
from tinsmith_server.bus import Bus
from tinsmith_server.db import ApiKey, Database, now
from tinsmith_server.remembered import Remembered

_REMEMBERED_SECONDS = 60.0


@dataclass(frozen=True)
class Caller:
    key_id: str
    organization_id: str


class KeyRing:
    def __init__(self, db: Database, bus: Bus, pepper: bytes) -> None:
        self._db, self._bus, self._pepper = db, bus, pepper
        self._callers = Remembered(self._find, seconds=_REMEMBERED_SECONDS)
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._watch = asyncio.create_task(self._forget_revoked(), name="key-revocations")

    async def close(self) -> None:
        if self._watch:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    async def caller(self, text: str) -> Caller:
        """Raises Unauthorized, with the same sentence for a wrong key and a revoked one."""
        return await self._callers.get(text)

    async def _find(self, text: str) -> Caller:
        async with self._db.begin() as sql:
            row = await keys.find(sql, self._pepper, text)
            if row is None:
                raise Unauthorized("The API key is not valid. `tinsmith keys create` makes one.")
            await sql.execute(update(ApiKey).where(ApiKey.id == row.id).values(last_used_at=now()))
        return Caller(row.id, row.organization_id)

    async def _forget_revoked(self) -> None:
        async for key_id in self._bus.revoked():
            self._callers.forget(lambda _, caller, revoked=key_id: caller.key_id == revoked)  # type: ignore[misc]


async def authenticated(request: Request) -> Caller:
    text = request.headers.get("x-api-key")
    if not text:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        text = token if scheme.lower() == "bearer" else ""
    if not text:
        raise Unauthorized("Send your API key in the header X-API-Key.")
    ring: KeyRing = request.app.state.service.keys
    return await ring.caller(text.strip())


User = Annotated[Caller, Depends(authenticated)]
