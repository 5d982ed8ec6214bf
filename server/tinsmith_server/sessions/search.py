"""Finding sessions: the query of wire 8.8, and what is told of each one found."""

from collections.abc import Mapping, Sequence

from sqlalchemy import ColumnElement, and_, false, func, or_, select, true
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.errors import BadRequest, NotFound
from tinsmith.protocol.session_bodies import (
    AreActive,
    AreFinished,
    FinishedBecause,
    SearchCursor,
    SearchSessions,
    SessionActive,
    SessionFinished,
    SessionsOf,
    SessionSummary,
    StatusQuery,
)

from tinsmith_server.accounts.urns import organization_urn
from tinsmith_server.auth import Caller
from tinsmith_server.checkpoints.repository import listed
from tinsmith_server.db import Checkpoint, Session, TrainingRun
from tinsmith_server.reach import own_sessions
from tinsmith_server.sessions.repository import DEFAULT_PROJECT
from tinsmith_server.times import in_utc


async def page(sql: AsyncSession, user: Caller, asked: SearchSessions) -> Sequence[Session]:
    """Newest first; one more than the limit when there is a next page."""
    if asked.project_ids is not None:
        await _check_projects(sql, user, asked.project_ids)
    query = (
        select(Session)
        .where(
            own_sessions(user),
            _owner(user, asked),
            _named(asked),
            _in_projects(asked),
            tagged(asked.user_metadata or {}),
            _in_status(asked.statuses),
            _after(asked.cursor),
        )
        .order_by(Session.created_at.desc(), Session.id)
        .limit(asked.limit + 1)
    )
    return (await sql.scalars(query)).all()


async def _check_projects(sql: AsyncSession, user: Caller, project_ids: list[str]) -> None:
    query = select(Session.project_id).where(
        own_sessions(user), Session.project_id.in_(project_ids)
    )
    known = {DEFAULT_PROJECT, *(await sql.scalars(query.distinct())).all()}
    for project_id in project_ids:
        if project_id not in known:
            raise NotFound(f"project_ids: there is no project {project_id[:80]!r}.")


def _owner(user: Caller, asked: SearchSessions) -> ColumnElement[bool]:
    """Everything of an organization is everyone's in it, so its own is all that is accessible."""
    if isinstance(asked.owner, SessionsOf):
        mine = organization_urn(user.organization_id) in asked.owner.owner_urns
        return true() if mine else false()
    return true()


def _named(asked: SearchSessions) -> ColumnElement[bool]:
    either = []
    if asked.session_id is not None:
        either.append(Session.id == asked.session_id)
    if asked.display_name is not None:
        name = func.lower(Session.display_name)
        words = asked.display_name.lower().split()
        either.append(and_(true(), *(name.contains(word, autoescape=True) for word in words)))
    return or_(*either) if either else true()


def _in_projects(asked: SearchSessions) -> ColumnElement[bool]:
    return true() if asked.project_ids is None else Session.project_id.in_(asked.project_ids)


def tagged(pairs: Mapping[str, str]) -> ColumnElement[bool]:
    for key in pairs:
        if not key.isprintable() or '"' in key or "\\" in key:  # a path of JSON cannot say these
            raise BadRequest(
                f"user_metadata: {key[:80]!r} cannot be searched for: it has a quote, a backslash or "
                "a control character."
            )
    held = [Session.user_metadata[key].as_string() == value for key, value in pairs.items()]
    return and_(true(), *held)


def _in_status(statuses: list[StatusQuery] | None) -> ColumnElement[bool]:
    """No session is ever cancelled or failed as a whole here: those match nothing."""
    if statuses is None:
        return true()
    either: list[ColumnElement[bool]] = [false()]
    for status in statuses:
        if isinstance(status, AreActive):
            either.append(Session.finished_at.is_(None))
        elif isinstance(status, AreFinished):
            reasons = status.reasons
            wanted = true() if reasons is None else Session.finish_reason.in_(reasons)
            either.append(Session.finished_at.is_not(None) & wanted)
    return or_(*either)


def _after(cursor: SearchCursor | None) -> ColumnElement[bool]:
    if cursor is None:
        return true()
    last = in_utc(cursor.last_created_at, "cursor.last_created_at")
    same_moment = (Session.created_at == last) & (Session.id > cursor.last_session_id)
    return (Session.created_at < last) | same_moment


async def checkpoints_of(
    sql: AsyncSession, session_ids: Sequence[str]
) -> dict[str, tuple[int, int]]:
    """How many listed checkpoints each session has, and their bytes."""
    query = (
        select(TrainingRun.session_id, func.count(), func.sum(Checkpoint.size_bytes))
        .join(Checkpoint, Checkpoint.run_id == TrainingRun.id)
        .where(TrainingRun.session_id.in_(session_ids), listed())
        .group_by(TrainingRun.session_id)
    )
    return {row[0]: (row[1], int(row[2] or 0)) for row in (await sql.execute(query)).all()}


def summary(row: Session, saved: tuple[int, int], alive: bool) -> SessionSummary:
    return SessionSummary(
        session_id=row.id,
        created_at=row.created_at,
        owner=organization_urn(row.organization_id),
        project_id=row.project_id,
        checkpoints_count=saved[0],
        checkpoint_storage_bytes=saved[1],
        status=_status(row, alive),
        display_name=row.display_name,
        user_metadata=row.user_metadata,
    )


def _status(row: Session, alive: bool) -> SessionActive | SessionFinished | None:
    """None when its client neither said good-bye nor is heard of any more."""
    if row.finished_at is not None:
        because = FinishedBecause(type=row.finish_reason or "success")
        return SessionFinished(reason=because, detail=row.finish_detail)
    return SessionActive() if alive else None
