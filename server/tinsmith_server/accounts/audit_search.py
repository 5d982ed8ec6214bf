"""The audit log as people read it: newest first, by what, by whom, by when."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from tinsmith_server.accounts.tables import User
from tinsmith_server.db import ApiKey, AuditEntry


@dataclass(frozen=True, kw_only=True)
class AuditQuestion:
    resource: str | None = None
    """organization, project or checkpoint."""
    actor: str | None = None
    """The id of a user or of a key."""
    since: datetime | None = None
    until: datetime | None = None
    limit: int = 50
    offset: int = 0


@dataclass(frozen=True)
class AuditLine:
    entry: AuditEntry
    actor: str
    """An e-mail address, a key's name, or "the service" for what it or its operator did."""


async def search_audit(
    sql: AsyncSession, organization_id: str, asked: AuditQuestion
) -> tuple[list[AuditLine], int]:
    """The page, and how many there are in all."""
    query = (
        select(AuditEntry, User.email, ApiKey.name)
        .outerjoin(User, User.id == AuditEntry.user_id)
        .outerjoin(ApiKey, ApiKey.id == AuditEntry.key_id)
        .where(AuditEntry.organization_id == organization_id)
    )
    if asked.resource:
        query = query.where(AuditEntry.resource == asked.resource)
    if asked.actor:
        query = query.where(
            (AuditEntry.user_id == asked.actor) | (AuditEntry.key_id == asked.actor)
        )
    if asked.since:
        query = query.where(AuditEntry.at >= asked.since)
    if asked.until:
        query = query.where(AuditEntry.at < asked.until)
    total = await sql.scalar(select(func.count()).select_from(query.subquery()))
    query = query.order_by(AuditEntry.at.desc(), AuditEntry.id)
    rows: Sequence[tuple[AuditEntry, str | None, str | None]] = [
        (row[0], row[1], row[2])
        for row in (await sql.execute(query.limit(asked.limit).offset(asked.offset))).all()
    ]
    return [
        AuditLine(entry, email or name or "the service") for entry, email, name in rows
    ], total or 0
