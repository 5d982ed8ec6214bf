"""Usage added up for people: by day, model, project and key, from the rows that the API reports."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from tinsmith_server.db import Session, Usage
from tinsmith_server.usage.prices import Prices

Part = Literal["day", "base_model", "project_id", "key_id", "kind"]


@dataclass(frozen=True)
class UsageRow:
    """Tokens of one kind. `cost_usd` is None where the kind has no price."""

    day: date
    base_model: str
    project_id: str
    key_id: str
    kind: str
    tokens: int
    cost_usd: float | None


async def usage_rows(
    sql: AsyncSession, organization_id: str, begin: date, end: date, prices: Prices
) -> list[UsageRow]:
    """Of the UTC days from `begin` to before `end`, by day and then by name."""
    query = (
        select(
            Usage.hour,
            Usage.base_model,
            Session.project_id,
            Session.key_id,
            Usage.kind,
            func.sum(Usage.tokens),
        )
        .join(Session, Session.id == Usage.session_id, isouter=True)
        .where(
            Usage.organization_id == organization_id,
            Usage.hour >= _midnight(begin),
            Usage.hour < _midnight(end),
        )
        .group_by(Usage.hour, Usage.base_model, Session.project_id, Session.key_id, Usage.kind)
    )
    counts: dict[tuple[date, str, str, str, str], int] = {}
    for hour, base_model, project_id, key_id, kind, tokens in (await sql.execute(query)).all():
        group = (hour.date(), base_model, project_id or "", key_id or "", kind)
        counts[group] = counts.get(group, 0) + int(tokens)
    return [
        UsageRow(*group, tokens, _cost(prices, group[4], tokens))
        for group, tokens in sorted(counts.items())
    ]


def added_up(rows: Iterable[UsageRow], part: Part) -> dict[str, tuple[int, float | None]]:
    """Tokens and cost of each value of one part. One unpriced row leaves the cost unknown."""
    totals: dict[str, tuple[int, float | None]] = {}
    for row in rows:
        name = str(getattr(row, part))
        tokens, cost = totals.get(name, (0, 0.0))
        both = None if cost is None or row.cost_usd is None else cost + row.cost_usd
        totals[name] = (tokens + row.tokens, both)
    return totals


def as_csv(rows: Sequence[UsageRow]) -> str:
    """RFC 4180. A name that a spreadsheet would take for a formula is quoted as text."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([field.name for field in fields(UsageRow)])
    for row in rows:
        values = [getattr(row, field.name) for field in fields(UsageRow)]
        writer.writerow([_plain(value) for value in values])
    return out.getvalue()


def month_of(moment: datetime) -> tuple[date, date]:
    """The UTC month that the moment is in: its first day, and that of the next."""
    first = moment.astimezone(UTC).date().replace(day=1)
    return first, (first + timedelta(days=32)).replace(day=1)


def _plain(value: object) -> object:
    text = isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r")
    return f"'{value}" if text else value


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _cost(prices: Prices, kind: str, tokens: int) -> float | None:
    rate = prices.tokens(kind)
    return None if rate is None else rate * tokens / 1e6
