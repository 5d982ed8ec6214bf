"""Training runs by owner."""

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.errors import NotFound

from tinsmith_server.auth import Caller
from tinsmith_server.checkpoints import repository as checkpoints
from tinsmith_server.db import Session, TrainingRun
from tinsmith_server.reach import own, reaches


async def owned_by(sql: AsyncSession, user: Caller, run_id: str) -> TrainingRun:
    """The run, if it is the caller's. Someone else's run is as absent as no run at all."""
    row = await sql.get(TrainingRun, run_id)
    if row is None or not await reaches(sql, user, row):
        raise NotFound(f"model_id: there is no training run {run_id[:120]!r}.")
    return row


async def accessible_by(sql: AsyncSession, user: Caller, run_id: str) -> TrainingRun:
    """The same, or someone else's with a published checkpoint."""
    row = await sql.get(TrainingRun, run_id)
    if row is None or not await checkpoints.visible_of_run(sql, user, run_id):
        return await owned_by(sql, user, run_id)
    return row


async def page(
    sql: AsyncSession, user: Caller, limit: int, offset: int, project_id: str | None = None
) -> tuple[Sequence[TrainingRun], int]:
    """Newest first, and how many there are."""
    mine = select(TrainingRun).where(own(user, TrainingRun))
    if project_id is not None:
        mine = mine.join(Session, Session.id == TrainingRun.session_id).where(
            Session.project_id == project_id
        )
    total = await sql.scalar(select(func.count()).select_from(mine.subquery()))
    query = mine.order_by(TrainingRun.created_at.desc(), TrainingRun.id)
    return (await sql.scalars(query.limit(limit).offset(offset))).all(), total or 0
