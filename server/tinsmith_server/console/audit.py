"""The audit log: who changed what, newest first."""

from datetime import UTC, date, datetime, time, timedelta

from fastapi import APIRouter
from fastapi.responses import Response
from sqlalchemy import select
from starlette.requests import Request
from tinsmith.protocol.errors import BadRequest

from tinsmith_server.accounts.audit_search import AuditLine
from tinsmith_server.accounts.tables import User
from tinsmith_server.console.paging import After, turned, window
from tinsmith_server.console.security import Admin, console_router
from tinsmith_server.console.templating import page
from tinsmith_server.db import ApiKey, AuditEntry
from tinsmith_server.service import Served

router: APIRouter = console_router()
RESOURCES = ("checkpoint", "organization", "project")


@router.get("/audit")
async def audit_page(
    request: Request,
    member: Admin,
    service: Served,
    after: After = "",
    resource: str = "",
    day: str = "",
) -> Response:
    begin = _day(day) if day else None
    query = (
        select(AuditEntry, User.email, ApiKey.name)
        .outerjoin(User, User.id == AuditEntry.user_id)
        .outerjoin(ApiKey, ApiKey.id == AuditEntry.key_id)
        .where(AuditEntry.organization_id == member.organization_id)
    )
    if resource:
        query = query.where(AuditEntry.resource == resource)
    if begin:
        query = query.where(AuditEntry.at >= begin, AuditEntry.at < begin + timedelta(days=1))
    async with service.db.begin() as sql:
        shown = window(query, AuditEntry.at, AuditEntry.id, after)
        found = [
            AuditLine(entry, email or name or "the service")
            for entry, email, name in (await sql.execute(shown)).all()
        ]
    return page(
        request,
        "audit.html",
        lines=turned(request, after, found, lambda line: (line.entry.at, line.entry.id)),
        resources=RESOURCES,
        resource=resource,
        day=day,
    )


def _day(text: str) -> datetime:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise BadRequest("day: give a date, as in 2026-07-13.") from None
    if not 2000 <= day.year < 3000:
        raise BadRequest(f"day: {day.year} is not a year from 2000 to 2999.")
    return datetime.combine(day, time(), UTC)
