"""How many gigabyte-hours were stored in each hour, from when each checkpoint came and went."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from tinsmith_server.auth import Caller
from tinsmith_server.db import Checkpoint, Session, TrainingRun, now
from tinsmith_server.usage.prices import BYTES_PER_GIGABYTE

_HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Shelf:
    """What is told apart. Weights behind an unnamed sampler are the service's own: free."""

    project_id: str
    base_model: str
    free: bool


@dataclass(frozen=True)
class Stored:
    shelf: Shelf
    size_bytes: int
    begin: datetime
    end: datetime


async def stored_between(
    sql: AsyncSession, user: Caller, begin: datetime, end: datetime
) -> list[Stored]:
    query = (
        select(Checkpoint, TrainingRun.base_model, Session.project_id)
        .join(TrainingRun, TrainingRun.id == Checkpoint.run_id)
        .join(Session, Session.id == TrainingRun.session_id)
        .where(
            Checkpoint.organization_id == user.organization_id,
            Checkpoint.ready,
            Checkpoint.created_at < end,
            Checkpoint.deleted_at.is_(None) | (Checkpoint.deleted_at > begin),
        )
    )
    today = now()
    return [
        Stored(
            Shelf(project_id, base_model, row.name is None),
            row.size_bytes or 0,
            max(begin, row.created_at),
            min(t for t in (end, today, row.expires_at, row.deleted_at) if t is not None),
        )
        for row, base_model, project_id in (await sql.execute(query)).all()
    ]


def gigabyte_hours(
    stored: Iterable[Stored], begin: datetime, hours: int
) -> dict[tuple[int, Shelf], float]:
    """By hour of the window. Whole hours are steps of a sum, so a long life costs no more than a short."""
    steps: defaultdict[Shelf, list[float]] = defaultdict(lambda: [0.0] * (hours + 2))
    for one in stored:
        gigabytes = one.size_bytes / BYTES_PER_GIGABYTE
        for moment, sign in ((one.begin, 1.0), (max(one.begin, one.end), -1.0)):
            hour, rest = divmod(moment - begin, _HOUR)
            missed = rest / _HOUR
            steps[one.shelf][hour] += sign * gigabytes * (1 - missed)
            steps[one.shelf][hour + 1] += sign * gigabytes * missed
    found = {}
    for shelf, changes in steps.items():
        level = 0.0
        for hour, change in enumerate(changes[:hours]):
            level += change
            if level > 1e-15:
                found[hour, shelf] = level
    return found
