"""The audit log: who changed what, newest first."""

from datetime import UTC, date, datetime, time, timedelta

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request
from tinsmith.protocol.errors import BadRequest

from tinsmith_server.accounts.audit_search import AuditQuestion, search_audit
from tinsmith_server.console.paging import PAGE, PageNumber, turned
from tinsmith_server.console.security import Admin, console_router
from tinsmith_server.console.templating import page
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
    begin = _day(day) if day else None
    asked = AuditQuestion(
        resource=resource or None,
        since=begin,
        until=begin + timedelta(days=1) if begin else None,
        limit=PAGE + 1,
        offset=(number - 1) * PAGE,
    )
    async with service.db.begin() as sql:
        found, _ = await search_audit(sql, member.organization_id, asked)
    return page(
        request,
        "audit.html",
        lines=turned(request, number, found),
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
