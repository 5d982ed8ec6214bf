"""Training runs by owner."""

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.errors import NotFound

from tinsmith_server.auth import Caller
from tinsmith_server.db import TrainingRun


async def owned_by(sql: AsyncSession, user: Caller, run_id: str) -> TrainingRun:
    """The run, if it is the caller's. Someone else's run is as absent as no run at all."""
    row = await sql.get(TrainingRun, run_id)
    if row is None or row.organization_id != user.organization_id:
        raise NotFound(f"model_id: there is no training run {run_id[:120]!r}.")
    return row


async def page(
    sql: AsyncSession, user: Caller, limit: int, offset: int
) -> tuple[Sequence[TrainingRun], int]:
    """Newest first, and how many there are."""
    mine = TrainingRun.organization_id == user.organization_id
    total = await sql.scalar(select(func.count()).select_from(TrainingRun).where(mine))
    query = (
        select(TrainingRun)
        .where(mine)
        .order_by(TrainingRun.created_at.desc(), TrainingRun.id)
        .limit(limit)
        .offset(offset)
    )
    return (await sql.scalars(query)).all(), total or 0
