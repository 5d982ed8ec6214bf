"""Who is asking. A key is looked up once, then remembered until it is revoked or a minute old.

A token's signature is checked each time, and its key is looked up as if it had come itself.
"""

import asyncio
import time
from dataclasses import replace
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import update
from tinsmith.protocol.errors import Unauthorized

from tinsmith_server.accounts import keys, tokens
from tinsmith_server.accounts.caller import Caller as Caller
from tinsmith_server.accounts.scopes import check_scope
from tinsmith_server.bus import Bus
from tinsmith_server.db import ApiKey, Database, now
from tinsmith_server.remembered import Remembered

_REMEMBERED_SECONDS = 60.0
_INVALID = "The API key is not valid. `tinsmith keys create` makes one."


class KeyRing:
    def __init__(self, db: Database, bus: Bus, pepper: bytes) -> None:
        self._db, self._bus, self._pepper = db, bus, pepper
        self._token_secret = tokens.token_secret(pepper)
        self._callers = Remembered(self._find, seconds=_REMEMBERED_SECONDS)
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._watch = asyncio.create_task(self._forget_revoked(), name="key-revocations")

    async def close(self) -> None:
        if self._watch:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    async def caller(self, text: str) -> Caller:
        """Of a key or a token. The sentence is the same for a wrong key and a revoked one."""
        if not text.startswith("eyJ"):
            return self._in_time(await self._callers.get(text))
        token = tokens.verify(self._token_secret, text)
        key = self._in_time(await self._callers.get(token.key_id))
        return replace(key, until=min(filter(None, (key.until, token.until)), default=None))

    def _in_time(self, caller: Caller) -> Caller:
        """What is remembered of a key may outlive it."""
        if caller.until is not None and caller.until <= time.time():
            raise Unauthorized(_INVALID)
        return caller

    async def _find(self, name: str) -> Caller:
        """`name` is a key's text, or its id when a token of ours vouches for it."""
        async with self._db.begin() as sql:
            if name.startswith("tml-"):
                row = await keys.find(sql, self._pepper, name)
            else:
                row = await keys.live(sql, name)
            if row is None:
                raise Unauthorized(_INVALID)
            await sql.execute(update(ApiKey).where(ApiKey.id == row.id).values(last_used_at=now()))
        return keys.caller_of(row)

    def forget(self, key_id: str) -> None:
        self._callers.forget(lambda _, caller: caller.key_id == key_id)

    async def _forget_revoked(self) -> None:
        async for key_id in self._bus.revoked():
            self.forget(key_id)


async def authenticated(request: Request) -> Caller:
    text = request.headers.get("x-api-key")
    if not text:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        text = token if scheme.lower() == "bearer" else ""
    if not text:
        raise Unauthorized("Send your API key in the header X-API-Key.")
    ring: KeyRing = request.app.state.service.keys
    caller = await ring.caller(text.strip())
    check_scope(caller.scopes, request.method, request.scope["path"])
    return caller


User = Annotated[Caller, Depends(authenticated)]
