"""Who is asking. A key is looked up once, then remembered until it is revoked or a minute old."""

import asyncio
import time
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import update
from tinsmith.protocol.errors import Unauthorized

from tinsmith_server.accounts import keys
from tinsmith_server.bus import Bus
from tinsmith_server.db import ApiKey, Database, now

_REMEMBERED_SECONDS = 60.0


@dataclass(frozen=True)
class Caller:
    key_id: str
    organization_id: str


class KeyRing:
    def __init__(self, db: Database, bus: Bus, pepper: bytes) -> None:
        self._db, self._bus, self._pepper = db, bus, pepper
        self._known: dict[str, tuple[Caller, float]] = {}
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._watch = asyncio.create_task(self._forget_revoked(), name="key-revocations")

    async def close(self) -> None:
        if self._watch:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    async def caller(self, text: str) -> Caller:
        """Raises Unauthorized, with the same sentence for a wrong key and a revoked one."""
        known = self._known.get(text)
        if known and time.monotonic() - known[1] < _REMEMBERED_SECONDS:
            return known[0]
        async with self._db.begin() as sql:
            row = await keys.find(sql, self._pepper, text)
            if row is None:
                self._known.pop(text, None)
                raise Unauthorized("The API key is not valid. `tinsmith keys create` makes one.")
            await sql.execute(update(ApiKey).where(ApiKey.id == row.id).values(last_used_at=now()))
        caller = Caller(row.id, row.organization_id)
        self._known[text] = (caller, time.monotonic())
        return caller

    async def _forget_revoked(self) -> None:
        async for key_id in self._bus.revoked():
            self._known = {
                text: known for text, known in self._known.items() if known[0].key_id != key_id
            }


async def _authenticated(request: Request) -> Caller:
    text = request.headers.get("x-api-key")
    if not text:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        text = token if scheme.lower() == "bearer" else ""
    if not text:
        raise Unauthorized("Send your API key in the header X-API-Key.")
    ring: KeyRing = request.app.state.service.keys
    return await ring.caller(text.strip())


User = Annotated[Caller, Depends(_authenticated)]
