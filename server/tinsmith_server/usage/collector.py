"""Brings counted tokens from Redis to the database, each exactly once.

DONE counts a request's tokens in Redis with its result. They are taken over in batches; a batch enters
the database together with its own name, so one that was brought before, by this process or another, or
before a crash, is recognized and only cleared away.
"""

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import structlog
from sqlalchemy import delete, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol import keys

from tinsmith_server.bus import Bus
from tinsmith_server.db import Database, Usage, UsageBatch, now

_EVERY_SECONDS = 60.0
_REMEMBER_BATCHES = timedelta(days=7)
_SCRIPT = Path(__file__).parents[1] / "scripts" / "collect_usage.lua"
_log = structlog.get_logger()


@dataclass(frozen=True)
class Counted:
    """What one field of the hash counts."""

    hour: datetime
    organization_id: str
    session_id: str
    kind: str
    base_model: str

    @classmethod
    def parse(cls, field: str) -> Self:
        """The base model stands last: its name is the one that may hold anything."""
        hour, organization, session, kind, base_model = field.split("|", 4)
        return cls(datetime.fromtimestamp(int(hour), UTC), organization, session, kind, base_model)


class UsageCollector:
    def __init__(self, db: Database, bus: Bus) -> None:
        self._db, self._bus = db, bus
        self._script = bus.redis.register_script(_SCRIPT.read_text())

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            try:
                await self.collect()
            except Exception as error:  # noqa: BLE001 - what is not collected now is collected later
                _log.error("usage_not_collected", exc_info=error)

    async def collect(self) -> None:
        """When it returns, every request that was done before it was called is in the database."""
        for raw in await self._script(keys=[], args=[uuid.uuid4().hex]):
            batch = raw.decode()
            counts = await self._bus.redis.hgetall(keys.usage_batch(batch))
            if await self._write(batch, {name.decode(): int(n) for name, n in counts.items()}):
                async with self._bus.redis.pipeline(transaction=True) as pipeline:
                    pipeline.delete(keys.usage_batch(batch))
                    pipeline.srem(keys.USAGE_BATCHES, batch)
                    await pipeline.execute()

    async def _write(self, batch: str, counts: Mapping[str, int]) -> bool:
        """Whether the batch is in the database now. Two processes may try; one of them fails whole."""
        try:
            async with self._db.begin() as sql:
                if await sql.get(UsageBatch, batch) is None:
                    sql.add(UsageBatch(id=batch))
                    for field, tokens in counts.items():
                        await _add(sql, Counted.parse(field), tokens)
                await sql.execute(
                    delete(UsageBatch).where(UsageBatch.counted_at < now() - _REMEMBER_BATCHES)
                )
        except IntegrityError:
            _log.warning("usage_batch_left_for_the_next_time", batch=batch)
            return False
        return True


async def _add(sql: AsyncSession, counted: Counted, tokens: int) -> None:
    same = (
        (Usage.organization_id == counted.organization_id)
        & (Usage.hour == counted.hour)
        & (Usage.session_id == counted.session_id)
        & (Usage.base_model == counted.base_model)
        & (Usage.kind == counted.kind)
    )
    added = await sql.execute(
        update(Usage).where(same).values(tokens=Usage.tokens + tokens).returning(Usage.kind)
    )
    if added.first() is None:
        sql.add(Usage(**vars(counted), tokens=tokens))
