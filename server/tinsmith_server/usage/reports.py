"""What an organization used, hour by hour, and what each part of it costs where prices are set."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.report_bodies import UsageEvent, UsageReport, UsageSession

from tinsmith_server.accounts.urns import key_urn
from tinsmith_server.auth import Caller
from tinsmith_server.db import Checkpoint, Session, TrainingRun, Usage
from tinsmith_server.usage.prices import HOURS_PER_MONTH, Prices, cost
from tinsmith_server.usage.storage import gigabyte_hours, stored_between

_HOUR = timedelta(hours=1)
_INFO: dict[str, dict[str, Any]] = {
    "training": {"type": "training"},
    "sampling_prefill": {"type": "sampling_prefill", "cached": False},
    "sampling_prefill_cached": {"type": "sampling_prefill", "cached": True},
    "sampling_sample": {"type": "sampling_sample"},
}


@dataclass(frozen=True)
class Window:
    begin: datetime
    end: datetime

    @property
    def hours(self) -> int:
        return int((self.end - self.begin) / _HOUR)


async def usage_report(
    sql: AsyncSession, user: Caller, window: Window, prices: Prices
) -> UsageReport:
    """By hour, and within it the most tokens first."""
    sessions = await _sessions(sql, user)
    events = [
        *await _token_events(sql, user, window, prices, sessions),
        *await _checkpoint_events(sql, user, window, sessions),
        *await _storage_events(sql, user, window, prices),
    ]
    events.sort(key=lambda one: (one.bucket_start, -one.event_info.get("token_count", -1)))
    return UsageReport(data=events, sessions=_named(events, sessions))


async def _sessions(sql: AsyncSession, user: Caller) -> dict[str, Session]:
    query = select(Session).where(Session.organization_id == user.organization_id)
    return {row.id: row for row in (await sql.scalars(query)).all()}


def _named(events: Iterable[UsageEvent], sessions: dict[str, Session]) -> dict[str, UsageSession]:
    ids = {one.session_id for one in events if one.session_id is not None}
    return {
        session_id: UsageSession(user_metadata=sessions[session_id].user_metadata)
        for session_id in sorted(ids & sessions.keys())
    }


async def _token_events(
    sql: AsyncSession, user: Caller, window: Window, prices: Prices, sessions: dict[str, Session]
) -> list[UsageEvent]:
    query = select(Usage).where(
        Usage.organization_id == user.organization_id,
        Usage.hour >= window.begin,
        Usage.hour < window.end,
    )
    return [
        UsageEvent(
            bucket_start=row.hour,
            bucket_end=row.hour + _HOUR,
            event_info=_INFO[row.kind] | {"token_count": row.tokens},
            base_model=row.base_model,
            estimated_cost_usd=cost(prices.tokens(row.kind), row.tokens / 1e6),
            effective_rate_usd_per_million_tokens=prices.tokens(row.kind),
            **_whose(sessions, row.session_id),
        )
        for row in (await sql.scalars(query)).all()
    ]


async def _checkpoint_events(
    sql: AsyncSession, user: Caller, window: Window, sessions: dict[str, Session]
) -> list[UsageEvent]:
    """How many were saved; that some were deleted later does not matter."""
    query = (
        select(Checkpoint.created_at, TrainingRun.session_id, TrainingRun.base_model)
        .join(TrainingRun, TrainingRun.id == Checkpoint.run_id)
        .where(
            Checkpoint.organization_id == user.organization_id,
            Checkpoint.ready,
            Checkpoint.name.is_not(None),
            Checkpoint.created_at >= window.begin,
            Checkpoint.created_at < window.end,
        )
    )
    counts: dict[tuple[datetime, str, str], int] = {}
    for created_at, session_id, base_model in (await sql.execute(query)).all():
        group = (created_at.replace(minute=0, second=0, microsecond=0), session_id, base_model)
        counts[group] = counts.get(group, 0) + 1
    return [
        UsageEvent(
            bucket_start=hour,
            bucket_end=hour + _HOUR,
            event_info={"type": "checkpoint", "count": count},
            base_model=base_model,
            **_whose(sessions, session_id),
        )
        for (hour, session_id, base_model), count in counts.items()
    ]


async def _storage_events(
    sql: AsyncSession, user: Caller, window: Window, prices: Prices
) -> list[UsageEvent]:
    stored = await stored_between(sql, user, window.begin, window.end)
    found = gigabyte_hours(stored, window.begin, window.hours)
    rates = {shelf: 0.0 if shelf.free and prices.storage else prices.storage for _, shelf in found}
    return [
        UsageEvent(
            bucket_start=window.begin + hour * _HOUR,
            bucket_end=window.begin + (hour + 1) * _HOUR,
            event_info={"type": "storage", "free": shelf.free, "gigabyte_hours": quantity},
            base_model=shelf.base_model,
            project_id=shelf.project_id,
            estimated_cost_usd=cost(rates[shelf], quantity / HOURS_PER_MONTH),
            effective_rate_usd_per_gigabyte_month=rates[shelf],
        )
        for (hour, shelf), quantity in found.items()
    ]


def _whose(sessions: dict[str, Session], session_id: str) -> dict[str, Any]:
    session = sessions.get(session_id)
    if session is None:
        return {"session_id": session_id}
    return {
        "session_id": session_id,
        "project_id": session.project_id,
        "user_id": key_urn(session.key_id) if session.key_id else None,
    }
