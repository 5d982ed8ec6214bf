"""Sessions by owner."""

from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.errors import BadRequest, NotFound

from tinsmith_server.auth import Caller
from tinsmith_server.db import Session


async def owned_by(sql: AsyncSession, user: Caller, session_id: str) -> Session:
    """The session, if it is the caller's organization's."""
    row = await sql.get(Session, session_id)
    if row is None or row.organization_id != user.organization_id:
        raise NotFound(f"session_id: there is no session {session_id[:80]!r}.")
    return row


async def open_session(sql: AsyncSession, user: Caller, session_id: str) -> Session:
    """The same, if its client has not finished it."""
    return still_open(await owned_by(sql, user, session_id))


def still_open(session: Session) -> Session:
    if session.finished_at is not None:
        raise BadRequest(f"session_id: session {session.id} is finished; create a new one.")
    return session
