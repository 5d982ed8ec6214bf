"""The audit log, one UTC day at a time."""

from datetime import UTC, date, datetime, time, timedelta
from typing import Literal

from fastapi import APIRouter
from fastapi.responses import Response
from sqlalchemy import select
from tinsmith.protocol.report_bodies import AuditLog, AuditLogEntry

from tinsmith_server.accounts.urns import key_urn
from tinsmith_server.auth import User
from tinsmith_server.db import AuditEntry, now
from tinsmith_server.service import Served
from tinsmith_server.times import check_year
from tinsmith_server.wire import answer

router = APIRouter()
EventType = Literal["all", "checkpoints", "projects", "teams", "organizations"]


@router.get("/audit")
async def audit_log(
    user: User, service: Served, event_type: EventType = "all", day: date | None = None
) -> Response:
    """The organization's entries of that day (today), oldest first."""
    day = day or now().date()
    check_year(day.year, "day")
    begin = datetime.combine(day, time(), UTC)
    query = (
        select(AuditEntry)
        .where(
            AuditEntry.organization_id == user.organization_id,
            AuditEntry.at >= begin,
            AuditEntry.at < begin + timedelta(days=1),
        )
        .order_by(AuditEntry.at, AuditEntry.id)
    )
    if event_type != "all":
        query = query.where(AuditEntry.resource == event_type.removesuffix("s"))
    async with service.db.begin() as sql:
        rows = (await sql.scalars(query)).all()
    return answer(AuditLog(entries=[_entry(row) for row in rows]))


def _entry(row: AuditEntry) -> AuditLogEntry:
    """`by` is null for what the service or its operator did."""
    by = key_urn(row.key_id) if row.key_id else None
    return AuditLogEntry(
        timestamp=row.at,
        event=f"{row.resource}_{row.action}",
        event_details={"by": by} | row.details,
        model_id=row.details.get("model_id"),
        tinker_path=row.details.get("tinker_path"),
        purpose=row.details.get("purpose"),
    )
