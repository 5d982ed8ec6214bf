"""The audit log: who changed what, newest first."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta

from fastapi import APIRouter
from fastapi.responses import Response
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request
from tinsmith.protocol.errors import BadRequest

from tinsmith_server.accounts.tables import User
from tinsmith_server.console.paging import PageNumber, turned, window
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
    number: PageNumber = 1,
    resource: str = "",
    day: str = "",
) -> Response:
    query = select(AuditEntry).where(AuditEntry.organization_id == member.organization_id)
    if resource:
        query = query.where(AuditEntry.resource == resource)
    if day:
        begin = _day(day)
        query = query.where(AuditEntry.at >= begin, AuditEntry.at < begin + timedelta(days=1))
    ordered = query.order_by(AuditEntry.at.desc(), AuditEntry.id)
    async with service.db.begin() as sql:
        found = (await sql.scalars(window(ordered, number))).all()
        names = await _names(sql, member.organization_id, found)
    return page(
        request,
        "audit.html",
        entries=turned(request, number, found),
        names=names,
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


async def _names(
    sql: AsyncSession, organization_id: str, found: Sequence[AuditEntry]
) -> dict[str | None, str]:
    """Of the keys and people that did it."""
    keys = select(ApiKey.id, ApiKey.name).where(
        ApiKey.organization_id == organization_id, ApiKey.id.in_({one.key_id for one in found})
    )
    users = select(User.id, User.email).where(User.id.in_({one.user_id for one in found}))
    named: dict[str | None, str] = {}
    for key_id, name in (await sql.execute(keys)).all():
        named[key_id] = f"key {name}"
    for user_id, email in (await sql.execute(users)).all():
        named[user_id] = email
    return named
