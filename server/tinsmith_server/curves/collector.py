"""Brings what DONE noted of steps and adoptions from Redis to the database.

A step's row has the run and the number of the step for its key, so one that is brought twice, by two
processes or after a crash, is there once. A long run is thinned out: beyond MOST_STEPS every second
step is kept, beyond twice that every fourth, and so on.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import structlog
from sqlalchemy import delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol import keys

from tinsmith_server.bus import Bus
from tinsmith_server.curves.entries import adoption, step
from tinsmith_server.db import Database, RunAdoption, RunStep, Table

MOST_STEPS = 4096
_EVERY_SECONDS = 5.0
_AT_ONCE = 1000
_log = structlog.get_logger()


class CurveCollector:
    def __init__(self, db: Database, bus: Bus) -> None:
        self._db, self._bus = db, bus
        self._collecting = asyncio.Lock()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            try:
                await self.collect()
            except Exception as error:  # noqa: BLE001 - what is not collected now is collected later
                _log.error("curves_not_collected", exc_info=error)

    async def collect(self) -> None:
        """When it returns, every step taken before it was called is in the database."""
        async with self._collecting:
            while entries := await self._bus.redis.xrange(keys.STEPS, count=_AT_ONCE):
                await self._write([(name.decode(), _text(fields)) for name, fields in entries])
                await self._bus.redis.xdel(keys.STEPS, *(name for name, _ in entries))

    async def _write(self, entries: Sequence[tuple[str, Mapping[str, str]]]) -> None:
        steps = [step(name, fields) for name, fields in entries if "step" in fields]
        adoptions = [adoption(name, fields) for name, fields in entries if "epoch" in fields]
        async with self._db.begin() as sql:
            await _insert_new(sql, RunStep, steps)
            await _insert_new(sql, RunAdoption, adoptions)
            for run_id, last in _last_steps(steps).items():
                await thin_out(sql, run_id, last)


async def thin_out(sql: AsyncSession, run_id: str, last_step: int) -> None:
    stride = stride_of(last_step)
    if stride > 1:
        await sql.execute(
            delete(RunStep).where(RunStep.run_id == run_id, RunStep.step % stride != 0)
        )


def stride_of(last_step: int) -> int:
    """Which steps of a run are kept: those that this power of two divides."""
    return 1 << max(0, ((last_step - 1) // MOST_STEPS).bit_length())


def _last_steps(steps: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    last: dict[str, int] = {}
    for one in steps:
        last[one["run_id"]] = max(one["step"], last.get(one["run_id"], 0))
    return last


async def _insert_new(sql: AsyncSession, table: type[Table], rows: list[dict[str, Any]]) -> None:
    """Those that are not there yet; both dialects can say so, each in its own construct."""
    if not rows:
        return
    dialect = sqlite if sql.get_bind().dialect.name == "sqlite" else postgresql
    await sql.execute(dialect.insert(table).on_conflict_do_nothing(), rows)


def _text(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in fields.items()}
