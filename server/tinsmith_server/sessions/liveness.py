"""Which sessions are heard of: their clients beat every ten seconds, and every submit and poll counts too.

A session that falls silent is released: its queued work is cancelled and its runs leave the workers'
memory. Their state is kept for a while, should the client come back; then the session is finished.
"""

import asyncio
from collections.abc import Sequence

import structlog
from redis.exceptions import RedisError
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError
from tinsmith.protocol import keys
from tinsmith.protocol.jobs import failure

from tinsmith_server.bus import Bus
from tinsmith_server.db import Database, SamplingSession, Session, TrainingRun, now
from tinsmith_server.storage import Storage

_SILENT_SECONDS = 300
_LOOK_SECONDS = 10.0
_log = structlog.get_logger()
_RELEASED = failure(
    "The session of this request was released: its client was not heard of for too long.", "server"
)
_FINISHED = failure("The session of this request was finished before it ran.")


async def beating(bus: Bus, session_ids: Sequence[str]) -> set[str]:
    """Those that were heard of in the last five minutes."""
    if not session_ids:
        return set()
    seconds, _ = await bus.redis.time()
    heard = await bus.redis.zmscore(keys.BEATS, list(session_ids))
    return {
        name
        for name, at in zip(session_ids, heard, strict=True)
        if at is not None and at > seconds - _SILENT_SECONDS
    }


class Liveness:
    """Releases the silent, and ends what is finished."""

    def __init__(
        self, db: Database, bus: Bus, storage: Storage, *, silent_seconds: int, kept_seconds: int
    ) -> None:
        self._db, self._bus, self._storage = db, bus, storage
        self._silent_seconds, self._kept_seconds = silent_seconds, kept_seconds

    async def watch(self) -> None:
        """For as long as the process lives. Several may: what one has done, another finds done."""
        while True:
            try:
                await self.look()
            except (RedisError, OperationalError) as error:
                _log.warning("silent_sessions_not_released", error=type(error).__name__)
            await asyncio.sleep(min(_LOOK_SECONDS, self._silent_seconds / 4))

    async def look(self) -> None:
        redis = self._bus.redis
        seconds, _ = await redis.time()
        for session_id in await self._until(keys.BEATS, seconds - self._silent_seconds):
            await self._release(session_id)
            await redis.zadd(keys.SILENT, {session_id: seconds})
            await redis.zrem(keys.BEATS, session_id)
            _log.info("session_released", session_id=session_id)
        for session_id in await self._until(keys.SILENT, seconds - self._kept_seconds):
            await self._finish_silent(session_id)
            await redis.zrem(keys.SILENT, session_id)

    async def end(self, session_id: str) -> None:
        """The session is finished: nothing of it runs any more, nothing but its results is kept."""
        runs, samplers = await self._lines(session_id)
        for line in [*runs, *samplers]:
            await self._bus.cancel_line(line, _FINISHED)
        for run_id in runs:
            if snapshot := await self._bus.end_run(run_id, _FINISHED):
                await self._storage.delete_folder(snapshot)
        await self._bus.redis.zrem(keys.BEATS, session_id)
        await self._bus.redis.zrem(keys.SILENT, session_id)

    async def _release(self, session_id: str) -> None:
        runs, samplers = await self._lines(session_id)
        for line in [*runs, *samplers]:
            await self._bus.cancel_line(line, _RELEASED)
        for run_id in runs:
            await self._bus.rest(run_id)

    async def _finish_silent(self, session_id: str) -> None:
        detail = f"Not heard of for {self._silent_seconds + self._kept_seconds} seconds."
        ended = {"finished_at": now(), "finish_reason": "interrupted", "finish_detail": detail}
        async with self._db.begin() as sql:
            still_open = (Session.id == session_id) & Session.finished_at.is_(None)
            await sql.execute(update(Session).where(still_open).values(**ended))
        await self._bus.finish(session_id)
        await self.end(session_id)

    async def _lines(self, session_id: str) -> tuple[list[str], list[str]]:
        """Its runs and its samplers."""
        async with self._db.begin() as sql:
            runs = select(TrainingRun.id).where(TrainingRun.session_id == session_id)
            samplers = select(SamplingSession.id).where(SamplingSession.session_id == session_id)
            return list(await sql.scalars(runs)), list(await sql.scalars(samplers))

    async def _until(self, key: str, second: float) -> list[str]:
        names = await self._bus.redis.zrangebyscore(key, "-inf", second, start=0, num=100)
        return [name.decode() for name in names]
