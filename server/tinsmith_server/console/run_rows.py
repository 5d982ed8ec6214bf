"""Runs as lists show them: with their last step, and what waits, in a fixed number of queries."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol import keys

from tinsmith_server.bus import Bus
from tinsmith_server.db import RunStep, TrainingRun, now

_RECENT = timedelta(minutes=2)


@dataclass(frozen=True)
class RunRow:
    run: TrainingRun
    last: RunStep | None
    num_waiting: int
    oldest_seconds: float | None
    """Since the first waiting request was submitted."""

    @property
    def is_active(self) -> bool:
        return self.num_waiting > 0 or now() - self.seen_at < _RECENT

    @property
    def seen_at(self) -> datetime:
        """The row's own time lags by up to a minute."""
        return (
            max(self.run.last_request_at, self.last.at) if self.last else self.run.last_request_at
        )


def of_organization(organization_id: str) -> Select[TrainingRun]:
    return select(TrainingRun).where(TrainingRun.organization_id == organization_id)


async def newest(sql: AsyncSession, bus: Bus, organization_id: str, count: int) -> Sequence[RunRow]:
    """Those that were used last."""
    query = of_organization(organization_id).order_by(TrainingRun.last_request_at.desc())
    return await rows(sql, bus, (await sql.scalars(query.limit(count))).all())


async def rows(sql: AsyncSession, bus: Bus, runs: Sequence[TrainingRun]) -> list[RunRow]:
    last = await _last_steps(sql, [run.id for run in runs])
    waits = await _waits(bus, [run.id for run in runs])
    return [RunRow(run, last.get(run.id), *waits[run.id]) for run in runs]


async def _last_steps(sql: AsyncSession, run_ids: Sequence[str]) -> dict[str, RunStep]:
    """A join: SQLite looks a list of pairs up by reading the whole table."""
    top = (
        select(RunStep.run_id, func.max(RunStep.step).label("step"))
        .where(RunStep.run_id.in_(run_ids))
        .group_by(RunStep.run_id)
        .subquery()
    )
    same = (RunStep.run_id == top.c.run_id) & (RunStep.step == top.c.step)
    query = select(RunStep).join(top, same)
    return {row.run_id: row for row in (await sql.scalars(query)).all()}


async def _waits(bus: Bus, run_ids: Sequence[str]) -> dict[str, tuple[int, float | None]]:
    """How many requests of each run have no result yet, and how old the first of them is."""
    if not run_ids:
        return {}
    seconds, microseconds = await bus.redis.time()
    async with bus.redis.pipeline(transaction=False) as pipe:
        for run_id in run_ids:
            pipe.zcard(keys.queue(run_id))
            pipe.zrange(keys.queue(run_id), 0, 0)
        found = await pipe.execute()
        firsts = [first[0].decode() if first else "" for first in found[1::2]]
        for first in firsts:
            pipe.hget(keys.future(first), "at")
        began = await pipe.execute()
    moment = seconds + microseconds / 1e6
    return {
        run_id: (count, moment - int(at) / 1e6 if at else None)
        for run_id, count, at in zip(run_ids, found[::2], began, strict=True)
    }
