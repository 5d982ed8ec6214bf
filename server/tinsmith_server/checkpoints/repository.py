"""Checkpoints by owner and path; a published one by path alone."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol import bodies
from tinsmith.protocol.errors import NotFound
from tinsmith.protocol.paths import CheckpointKind, TinkerPath
from tinsmith.protocol.store_layout import checkpoint_prefix

from tinsmith_server.auth import Caller
from tinsmith_server.db import Checkpoint, TrainingRun, now
from tinsmith_server.reach import own_by_run


def prefix(checkpoint: Checkpoint) -> str:
    return checkpoint_prefix(checkpoint.id)


def path_of(checkpoint: Checkpoint) -> TinkerPath:
    assert checkpoint.name is not None, "an unnamed checkpoint has no path"
    return TinkerPath(checkpoint.run_id, CheckpointKind(checkpoint.kind), checkpoint.name)


def alive() -> ColumnElement[bool]:
    """Neither deleted nor expired."""
    expired = Checkpoint.expires_at.is_not(None) & (Checkpoint.expires_at <= now())
    return Checkpoint.deleted_at.is_(None) & ~expired


def listed() -> ColumnElement[bool]:
    """Saved, named and alive."""
    return Checkpoint.ready & Checkpoint.name.is_not(None) & alive()


async def ready_at(
    sql: AsyncSession, user: Caller, path: TinkerPath
) -> tuple[Checkpoint, TrainingRun]:
    """To read: the checkpoint under this path, if it is the caller's or published; and its run."""
    return await _at(sql, path, _owned(user) | Checkpoint.public)


async def owned_at(
    sql: AsyncSession, user: Caller, path: TinkerPath
) -> tuple[Checkpoint, TrainingRun]:
    """To change: the caller's own."""
    return await _at(sql, path, _owned(user))


async def _at(
    sql: AsyncSession, path: TinkerPath, allowed: ColumnElement[bool]
) -> tuple[Checkpoint, TrainingRun]:
    query = (
        select(Checkpoint, TrainingRun)
        .join(TrainingRun, TrainingRun.id == Checkpoint.run_id)
        .where(_under(path), listed(), allowed)
        .order_by(Checkpoint.created_at.desc())
    )
    row = (await sql.execute(query)).first()
    if row is None:
        raise NotFound(f"path: there is no checkpoint {path}.")
    return row[0], row[1]


async def taken(sql: AsyncSession, user: Caller, path: TinkerPath, request_id: str) -> bool:
    """Whether another request has saved, or is saving, under this path."""
    query = select(Checkpoint.id).where(
        _owned(user), _under(path), alive(), Checkpoint.request_id != request_id
    )
    return (await sql.scalar(query.limit(1))) is not None


async def copied_by(sql: AsyncSession, user: Caller, request_id: str) -> bool:
    """Whether the request made a copy that is there for the caller."""
    query = select(Checkpoint.id).where(_owned(user), Checkpoint.request_id == request_id)
    return (await sql.scalar(query)) is not None


async def visible_of_run(sql: AsyncSession, user: Caller, run_id: str) -> Sequence[Checkpoint]:
    """Of one's own run all of them, of someone else's the published ones."""
    query = select(Checkpoint).where(
        Checkpoint.run_id == run_id, listed(), _owned(user) | Checkpoint.public
    )
    return (await sql.scalars(_newest_first(query))).all()


async def newest_of_runs(
    sql: AsyncSession, user: Caller, run_ids: Sequence[str]
) -> dict[tuple[str, str], Checkpoint]:
    """The newest visible checkpoint of each run and kind, in one query for a whole page."""
    rank = func.row_number().over(
        partition_by=(Checkpoint.run_id, Checkpoint.kind),
        order_by=(Checkpoint.created_at.desc(), Checkpoint.id),
    )
    ranked = (
        select(Checkpoint.id, rank.label("rank"))
        .where(Checkpoint.run_id.in_(run_ids), listed(), _owned(user) | Checkpoint.public)
        .subquery()
    )
    query = select(Checkpoint).join(ranked, ranked.c.id == Checkpoint.id).where(ranked.c.rank == 1)
    return {(row.run_id, row.kind): row for row in (await sql.scalars(query)).all()}


async def expired(sql: AsyncSession) -> Sequence[Checkpoint]:
    """Past their time, and not yet marked as deleted."""
    query = select(Checkpoint).where(
        Checkpoint.ready, Checkpoint.deleted_at.is_(None), Checkpoint.expires_at <= now()
    )
    return (await sql.scalars(query)).all()


async def page(
    sql: AsyncSession, user: Caller, limit: int, offset: int
) -> tuple[Sequence[Checkpoint], int]:
    mine = _owned(user) & listed()
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
        public=row.public,
        user_metadata=row.user_metadata,
        expires_at=row.expires_at,
    )


def _owned(user: Caller) -> ColumnElement[bool]:
    return own_by_run(user, Checkpoint)


def _under(path: TinkerPath) -> ColumnElement[bool]:
    return (
        (Checkpoint.run_id == path.run_id)
        & (Checkpoint.kind == path.kind.value)
        & (Checkpoint.name == path.name)
    )


def _newest_first(query: Select[Checkpoint]) -> Select[Checkpoint]:
    return query.order_by(Checkpoint.created_at.desc(), Checkpoint.id)
