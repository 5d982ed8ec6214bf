"""Checkpoints by owner and path."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol import bodies
from tinsmith.protocol.errors import NotFound
from tinsmith.protocol.paths import CheckpointKind, TinkerPath
from tinsmith.protocol.store_layout import checkpoint_prefix

from tinsmith_server.auth import Caller
from tinsmith_server.db import Checkpoint, TrainingRun, now


def prefix(checkpoint: Checkpoint) -> str:
    return checkpoint_prefix(checkpoint.id)


def path_of(checkpoint: Checkpoint) -> TinkerPath:
    assert checkpoint.name is not None, "an unnamed checkpoint has no path"
    return TinkerPath(checkpoint.run_id, CheckpointKind(checkpoint.kind), checkpoint.name)


def listed() -> ColumnElement[bool]:
    """Saved, named and not expired."""
    alive = or_(Checkpoint.expires_at.is_(None), Checkpoint.expires_at > now())
    return Checkpoint.ready & Checkpoint.name.is_not(None) & alive


async def ready_at(
    sql: AsyncSession, user: Caller, path: TinkerPath
) -> tuple[Checkpoint, TrainingRun]:
    """The caller's checkpoint under this path, and its run."""
    query = (
        select(Checkpoint, TrainingRun)
        .join(TrainingRun, TrainingRun.id == Checkpoint.run_id)
        .where(_at(user, path), listed())
        .order_by(Checkpoint.created_at.desc())
    )
    row = (await sql.execute(query)).first()
    if row is None:
        raise NotFound(f"path: there is no checkpoint {path}.")
    return row[0], row[1]


async def taken(sql: AsyncSession, user: Caller, path: TinkerPath, request_id: str) -> bool:
    """Whether another request has saved, or is saving, under this path."""
    query = select(Checkpoint.id).where(_at(user, path), Checkpoint.request_id != request_id)
    return (await sql.scalar(query.limit(1))) is not None


async def of_run(sql: AsyncSession, run_id: str) -> Sequence[Checkpoint]:
    query = select(Checkpoint).where(Checkpoint.run_id == run_id, listed())
    return (await sql.scalars(_newest_first(query))).all()


async def page(
    sql: AsyncSession, user: Caller, limit: int, offset: int
) -> tuple[Sequence[Checkpoint], int]:
    mine = (Checkpoint.organization_id == user.organization_id) & listed()
    total = await sql.scalar(select(func.count()).select_from(Checkpoint).where(mine))
    query = _newest_first(select(Checkpoint).where(mine)).limit(limit).offset(offset)
    return (await sql.scalars(query)).all(), total or 0


def as_body(row: Checkpoint) -> bodies.Checkpoint:
    path = path_of(row)
    return bodies.Checkpoint(
        checkpoint_id=path.checkpoint_id,
        checkpoint_type=path.kind.wire_type,
        time=row.created_at,
        tinker_path=str(path),
        size_bytes=row.size_bytes,
        user_metadata=row.user_metadata,
        expires_at=row.expires_at,
    )


def _at(user: Caller, path: TinkerPath) -> ColumnElement[bool]:
    return (
        (Checkpoint.organization_id == user.organization_id)
        & (Checkpoint.run_id == path.run_id)
        & (Checkpoint.kind == path.kind.value)
        & (Checkpoint.name == path.name)
    )


def _newest_first(query: Select[Checkpoint]) -> Select[Checkpoint]:
    return query.order_by(Checkpoint.created_at.desc(), Checkpoint.id)
