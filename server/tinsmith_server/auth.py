"""Who is asking. A key is looked up once, then remembered until it is revoked or a minute old.

A token's signature is checked each time, and its key is looked up as if it had come itself.
"""

import asyncio
import time
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import update
from tinsmith.protocol.errors import Unauthorized

from tinsmith_server.accounts import keys, tokens
from tinsmith_server.accounts.caller import Caller as Caller
from tinsmith_server.bus import Bus
from tinsmith_server.db import ApiKey, Database, now

_REMEMBERED_SECONDS = 60.0


class KeyRing:
    def __init__(self, db: Database, bus: Bus, pepper: bytes) -> None:
        self._db, self._bus, self._pepper = db, bus, pepper
        self._token_secret = tokens.token_secret(pepper)
        self._known: dict[str, tuple[Caller, float]] = {}
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._watch = asyncio.create_task(self._forget_revoked(), name="key-revocations")

    async def close(self) -> None:
        if self._watch:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    async def caller(self, text: str) -> Caller:
        """Of a key or a token. The sentence is the same for a wrong key and a revoked one."""
        token = tokens.verify(self._token_secret, text) if text.startswith("eyJ") else None
        name = token.key_id if token else text
        known = self._known.get(name)
        if known is None or time.monotonic() - known[1] >= _REMEMBERED_SECONDS:
            known = self._known[name] = (await self._look_up(name), time.monotonic())
        return token or known[0]

    async def _look_up(self, name: str) -> Caller:
        """`name` is a key's text, or its id when a token of ours vouches for it."""
        async with self._db.begin() as sql:
            if name.startswith("tml-"):
                row = await keys.find(sql, self._pepper, name)
            else:
                row = await keys.live(sql, name)
            if row is None:
                self._known.pop(name, None)
                raise Unauthorized("The API key is not valid. `tinsmith keys create` makes one.")
            await sql.execute(update(ApiKey).where(ApiKey.id == row.id).values(last_used_at=now()))
        return Caller(row.id, row.organization_id)

    def forget(self, key_id: str) -> None:
        self._known = {
            text: known for text, known in self._known.items() if known[0].key_id != key_id
        }

    async def _forget_revoked(self) -> None:
        async for key_id in self._bus.revoked():
            self.forget(key_id)


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
