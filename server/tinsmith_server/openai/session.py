"""The session that a key's requests through this endpoint count for: usage is counted by session."""

from sqlalchemy.exc import IntegrityError

from tinsmith_server.auth import Caller
from tinsmith_server.db import Database, Session
from tinsmith_server.remembered import Remembered
from tinsmith_server.sessions.repository import DEFAULT_PROJECT

_REMEMBERED_SECONDS = 60.0
OpenAISessions = Remembered[Caller, Session]


def openai_sessions(db: Database) -> OpenAISessions:
    """One for each key, made when it first asks; open again if it was finished for its silence."""

    async def ask(user: Caller) -> Session:
        try:
            return await _open(db, user)
        except IntegrityError:  # another process has just made it
            return await _open(db, user)

    return Remembered(ask, seconds=_REMEMBERED_SECONDS)


async def _open(db: Database, user: Caller) -> Session:
    name = f"openai-{user.key_id}"
    async with db.begin() as sql:
        row = await sql.get(Session, name)
        if row is None:
            row = Session(
                id=name,
                organization_id=user.organization_id,
                project_id=user.project_id or DEFAULT_PROJECT,
                display_name="OpenAI-compatible endpoint",
                sdk_version="",
                tags=["openai"],
                key_id=user.key_id,
            )
            sql.add(row)
        row.finished_at = row.finish_reason = row.finish_detail = None
    return row
