"""What was used: by day, model, project and key; the rows as CSV."""

from dataclasses import dataclass
from datetime import date, timedelta
from typing import get_args

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request
from tinsmith.protocol.errors import BadRequest

from tinsmith_server.console.security import Viewer, console_router
from tinsmith_server.console.templating import page
from tinsmith_server.db import ApiKey, now
from tinsmith_server.service import Served, Service
from tinsmith_server.usage.summary import Part, UsageRow, added_up, as_csv, usage_rows

router: APIRouter = console_router()
_LONGEST = timedelta(days=366)
_SHOWN_PARTS: dict[Part, str] = {
    "base_model": "base model",
    "project_id": "project",
    "key_id": "key",
    "kind": "kind",
}
_MOST_SERIES = 6


@dataclass(frozen=True)
class Span:
    """From `begin` to `end`, both included; UTC days."""

    begin: date
    end: date

    @property
    def days(self) -> list[date]:
        return [
            self.begin + timedelta(days=index) for index in range((self.end - self.begin).days + 1)
        ]


@router.get("/usage")
async def usage_page(
    request: Request,
    member: Viewer,
    service: Served,
    begin: str = "",
    end: str = "",
    part: str = "kind",
) -> Response:
    span, shown = _span(begin, end), _part(part)
    rows = await _rows(service, member.organization_id, span)
    async with service.db.begin() as sql:
        keys = await _key_names(sql, member.organization_id)
    return page(
        request,
        "usage.html",
        span=span,
        part=shown,
        parts=_SHOWN_PARTS,
        by_day=added_up(rows, "day"),
        by_part={part: added_up(rows, part) for part in _SHOWN_PARTS},
        keys=keys,
        total=sum(row.tokens for row in rows),
        cost=_cost(rows),
    )


@router.get("/usage.json")
async def usage_chart(
    member: Viewer, service: Served, begin: str = "", end: str = "", part: str = "kind"
) -> Response:
    """Tokens by day, a series for each of the largest values of the part."""
    span, shown = _span(begin, end), _part(part)
    rows = await _rows(service, member.organization_id, span)
    totals = sorted(added_up(rows, shown).items(), key=lambda one: -one[1][0])
    names = [name for name, _ in totals[:_MOST_SERIES]]
    tokens: dict[tuple[str, date], int] = {}
    for row in rows:
        group = (str(getattr(row, shown)), row.day)
        tokens[group] = tokens.get(group, 0) + row.tokens
    series = [
        {
            "label": name.replace("_", " ") or "none",
            "values": [tokens.get((name, day), 0) for day in span.days],
        }
        for name in names
    ]
    begins = [
        int(timedelta(days=day.toordinal() - date(1970, 1, 1).toordinal()).total_seconds())
        for day in span.days
    ]
    return JSONResponse({"x": begins if rows else [], "series": series})


@router.get("/usage.csv")
async def usage_csv(member: Viewer, service: Served, begin: str = "", end: str = "") -> Response:
    span = _span(begin, end)
    text = as_csv(await _rows(service, member.organization_id, span))
    name = f"usage-{span.begin}-{span.end}.csv"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(text, media_type="text/csv; charset=utf-8", headers=headers)


async def _rows(service: Service, organization_id: str, span: Span) -> list[UsageRow]:
    """As the API tells them: what is still on its way is brought in first."""
    await service.usage.collect()
    async with service.db.begin() as sql:
        until = span.end + timedelta(days=1)
        return await usage_rows(sql, organization_id, span.begin, until, service.settings.prices)


def _span(begin: str, end: str) -> Span:
    """The last thirty days, if nothing is said."""
    today = now().date()
    last = _day(end, "end") if end else today
    first = _day(begin, "begin") if begin else last - timedelta(days=29)
    if not first <= last <= first + _LONGEST:
        raise BadRequest("end: give a day after begin, within a year.")
    return Span(first, last)


def _day(text: str, field: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise BadRequest(f"{field}: give a date, as in 2026-07-13.") from None
    if not 2000 <= day.year < 3000:
        raise BadRequest(f"{field}: {day.year} is not a year from 2000 to 2999.")
    return day


def _part(name: str) -> Part:
    known: tuple[Part, ...] = get_args(Part)
    for part in known:
        if part == name and part in _SHOWN_PARTS:
            return part
    raise BadRequest(f"part: give one of {', '.join(_SHOWN_PARTS)}.")


def _cost(rows: list[UsageRow]) -> float | None:
    costs = [row.cost_usd for row in rows]
    known = [one for one in costs if one is not None]
    return sum(known) if len(known) == len(costs) else None


async def _key_names(sql: AsyncSession, organization_id: str) -> dict[str, str]:
    query = select(ApiKey.id, ApiKey.name).where(ApiKey.organization_id == organization_id)
    return {row[0]: row[1] for row in (await sql.execute(query)).all()}
