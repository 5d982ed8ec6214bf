"""Whose a session, a run and a sampler are, for the calls that come often. SQL is asked once a minute.

None of the three changes owner or base model. That a session is finished is told to every API process
over `ctl`; the minute is for a process that could not hear it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from tinsmith_server.auth import Caller
from tinsmith_server.bus import Bus
from tinsmith_server.db import Database, SamplingSession, Session, TrainingRun, now
from tinsmith_server.losses import repository as losses
from tinsmith_server.remembered import Remembered
from tinsmith_server.runs import repository as runs
from tinsmith_server.sampling import repository as samplers
from tinsmith_server.sessions import repository as sessions

T = TypeVar("T")
_REMEMBERED_SECONDS = 60.0
_REMEMBERED_GRAPHS = 64


class Owners:
    """Rows as they were read, apart from any transaction. Someone else's raises NotFound."""

    def __init__(self, db: Database, bus: Bus) -> None:
        self._db, self._bus = db, bus
        self._sessions = self._remembered(sessions.owned_by)
        self._samplers = self._remembered(samplers.owned_by)
        self._runs = self._remembered(_run_in_use)
        self._losses = self._remembered(losses.graph_of, most=_REMEMBERED_GRAPHS)
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._watch = asyncio.create_task(self._follow_finished(), name="finished-sessions")

    async def close(self) -> None:
        if self._watch:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    async def session(self, user: Caller, session_id: str) -> Session:
        return await self._sessions.get((user, session_id))

    async def sampler(self, user: Caller, sampler_id: str) -> SamplingSession:
        return await self._samplers.get((user, sampler_id))

    async def run(self, user: Caller, run_id: str) -> TrainingRun:
        """A run that is about to be used."""
        return await self._runs.get((user, run_id))

    async def custom_loss(self, user: Caller, loss_id: str) -> bytes:
        """Its graph."""
        return await self._losses.get((user, loss_id))

    async def finished(self, session_id: str) -> None:
        """The session takes no more, here from now on and everywhere else in a moment."""
        self._forget(session_id)
        await self._bus.finish(session_id)

    def _forget(self, session_id: str) -> None:
        self._sessions.forget(lambda key, _: key[1] == session_id)

    async def _follow_finished(self) -> None:
        async for session_id in self._bus.finished():
            self._forget(session_id)

    def _remembered(
        self, owned_by: Callable[[AsyncSession, Caller, str], Awaitable[T]], *, most: int = 10_000
    ) -> Remembered[tuple[Caller, str], T]:
        async def ask(key: tuple[Caller, str]) -> T:
            async with self._db.begin() as sql:
                return await owned_by(sql, *key)

        return Remembered(ask, seconds=_REMEMBERED_SECONDS, most=most)


async def _run_in_use(sql: AsyncSession, user: Caller, run_id: str) -> TrainingRun:
    """Its time of last use is written when it is read, so it can lag by a minute."""
    run = await runs.owned_by(sql, user, run_id)
    run.last_request_at = now()
    return run
