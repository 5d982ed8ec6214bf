"""Sessions by owner, and how a project is named.

A project is only a name that sessions share: it is there as soon as one of them is in it.
"""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.errors import BadRequest, NotFound

from tinsmith_server.accounts.projects import check_project_name
from tinsmith_server.auth import Caller
from tinsmith_server.db import Session
from tinsmith_server.reach import own_sessions, reaches

DEFAULT_PROJECT = "default"
project_name = check_project_name


async def owned_by(sql: AsyncSession, user: Caller, session_id: str) -> Session:
    """The session, if it is there for the caller."""
    row = await sql.get(Session, session_id)
    if row is None or not await reaches(sql, user, row):
        raise NotFound(f"session_id: there is no session {session_id[:80]!r}.")
    return row


async def open_session(sql: AsyncSession, user: Caller, session_id: str) -> Session:
    """The same, if its client has not finished it."""
    return still_open(await owned_by(sql, user, session_id))


def still_open(session: Session) -> Session:
    if session.finished_at is not None:
        raise BadRequest(f"session_id: session {session.id} is finished; create a new one.")
    return session


async def page(sql: AsyncSession, user: Caller, limit: int, offset: int) -> Sequence[str]:
    """Their ids, newest first."""
    query = (
        select(Session.id).where(own_sessions(user)).order_by(Session.created_at.desc(), Session.id)
    )
    return (await sql.scalars(query.limit(limit).offset(offset))).all()
