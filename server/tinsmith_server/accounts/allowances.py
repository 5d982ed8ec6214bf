"""What is used of what may be used: tokens and money of the UTC month, bytes that are stored.

A spent month does not pass by waiting, so it is told as 402 (the SDK's BillingError) where a run or a sampler
begins, and as a failed future where an op has its number already. Steps, saves and loads go on: what was
trained can be kept. A month is reckoned anew every ten seconds at most, so it can be overdrawn by as much.
"""

from dataclasses import dataclass
from datetime import datetime

import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.errors import BadRequest, PaymentRequired

from tinsmith_server.accounts.caller import Caller
from tinsmith_server.accounts.limits import LimitBook, LimitValues, Subject, all_limits
from tinsmith_server.bus import Bus
from tinsmith_server.checkpoints.repository import alive
from tinsmith_server.db import Checkpoint, Database, Session, TrainingRun, now
from tinsmith_server.remembered import Remembered
from tinsmith_server.usage.collector import UsageCollector
from tinsmith_server.usage.prices import Prices
from tinsmith_server.usage.summary import UsageRow, month_of, usage_rows

WARN_AT = 0.8
_RECKONED_SECONDS = 10.0
_SHOWN_SECONDS = 30.0
_WARNED_SECONDS = 32 * 24 * 3600
_log = structlog.get_logger()


@dataclass(frozen=True)
class Standing:
    """How much of one limit is used."""

    subject: Subject
    subject_id: str
    limit: str
    """Its name among LimitValues."""
    used: float
    allowed: float

    @property
    def share(self) -> float:
        return self.used / self.allowed if self.allowed else 1.0

    @property
    def spent(self) -> bool:
        return self.used >= self.allowed


class Allowances:
    def __init__(
        self, db: Database, bus: Bus, usage: UsageCollector, book: LimitBook, prices: Prices
    ) -> None:
        self._db, self._bus, self._usage, self._book = db, bus, usage, book
        self._prices = prices
        self._months = Remembered(self._month, seconds=_RECKONED_SECONDS)
        self._near = Remembered(self._nearly_spent, seconds=_SHOWN_SECONDS)

    async def check_month(self, user: Caller, project_id: str) -> None:
        """Raises PaymentRequired with the limit's name. No SQL where nothing was agreed."""
        agreed = await self._book.values(user, project_id)
        for subject, values in agreed.items():
            if values.monthly_tokens is None and values.monthly_budget_usd is None:
                continue
            subject_id = _id_of(subject, user, project_id)
            for one in await self._months.get((user.organization_id, subject, subject_id, values)):
                if one.spent:
                    raise PaymentRequired(
                        f"{one.limit}: this {subject.value} may use {_number(one)} a month, and has. "
                        "An admin can raise it in the console; saves and loads still work."
                    )

    async def check_stored(self, user: Caller, project_id: str) -> None:
        """Before anything more is stored. Raises BadRequest: it does not pass by waiting."""
        for subject, values in (await self._book.values(user, project_id)).items():
            if values.stored_bytes is None:
                continue
            subject_id = _id_of(subject, user, project_id)
            async with self._db.begin() as sql:
                used = await stored_bytes(sql, user.organization_id, subject, subject_id)
            if used >= values.stored_bytes:
                raise BadRequest(
                    f"stored_bytes: this {subject.value} may store {values.stored_bytes} bytes and "
                    f"has {used}; delete checkpoints first, or have the limit raised."
                )

    async def standings(self, organization_id: str) -> list[Standing]:
        """Of every month's and every stored limit, the fullest first. For pages."""
        async with self._db.begin() as sql:
            agreed = await all_limits(sql, organization_id)
        if not agreed:
            return []
        await self._usage.collect()
        async with self._db.begin() as sql:
            rows = await _rows_of_month(sql, organization_id, now(), self._prices)
            found = []
            for (subject, subject_id), values in agreed.items():
                found += _standings(rows, subject, subject_id, values)
                if values.stored_bytes is not None:
                    used = await stored_bytes(sql, organization_id, subject, subject_id)
                    found.append(
                        Standing(subject, subject_id, "stored_bytes", used, values.stored_bytes)
                    )
        return sorted(found, key=lambda one: -one.share)

    async def nearly_spent(self, organization_id: str) -> list[Standing]:
        """The standings at four fifths and beyond; half a minute old at most."""
        return await self._near.get(organization_id)

    def changed(self, organization_id: str) -> None:
        """Its limits, just now: what is shown of them is looked up anew."""
        self._near.forget(lambda key, _: key == organization_id)

    async def _nearly_spent(self, organization_id: str) -> list[Standing]:
        return [one for one in await self.standings(organization_id) if one.share >= WARN_AT]

    async def _month(self, asked: tuple[str, Subject, str, LimitValues]) -> list[Standing]:
        organization_id, subject, subject_id, values = asked
        await self._usage.collect()
        async with self._db.begin() as sql:
            rows = await _rows_of_month(sql, organization_id, now(), self._prices)
        found = _standings(rows, subject, subject_id, values)
        for one in found:
            if one.share >= WARN_AT:
                await self._warn(organization_id, one)
        return found

    async def _warn(self, organization_id: str, one: Standing) -> None:
        """Once a month in the log, by whichever process sees it first."""
        month = f"{now():%Y-%m}"
        key = f"warned:{organization_id}:{one.subject}:{one.subject_id}:{one.limit}:{month}"
        if await self._bus.redis.set(key, b"1", nx=True, ex=_WARNED_SECONDS):
            _log.warning(
                "limit_nearly_reached",
                organization=organization_id,
                subject=one.subject.value,
                subject_id=one.subject_id,
                limit=one.limit,
                used=one.used,
                allowed=one.allowed,
            )


async def stored_bytes(
    sql: AsyncSession, organization_id: str, subject: Subject, subject_id: str
) -> int:
    """Of every checkpoint that is alive, listed or not."""
    query = (
        select(func.sum(Checkpoint.size_bytes))
        .join(TrainingRun, TrainingRun.id == Checkpoint.run_id)
        .join(Session, Session.id == TrainingRun.session_id)
        .where(Checkpoint.organization_id == organization_id, Checkpoint.ready, alive())
    )
    if subject is Subject.PROJECT:
        query = query.where(Session.project_id == subject_id)
    if subject is Subject.KEY:
        query = query.where(Session.key_id == subject_id)
    return int(await sql.scalar(query) or 0)


async def _rows_of_month(
    sql: AsyncSession, organization_id: str, moment: datetime, prices: Prices
) -> list[UsageRow]:
    begin, end = month_of(moment)
    return await usage_rows(sql, organization_id, begin, end, prices)


def _standings(
    rows: list[UsageRow], subject: Subject, subject_id: str, values: LimitValues
) -> list[Standing]:
    """A kind of token without a price costs nothing here: no budget can hold what has no price."""
    mine = [
        row
        for row in rows
        if subject is Subject.ORGANIZATION
        or subject_id == (row.project_id if subject is Subject.PROJECT else row.key_id)
    ]
    used = {
        "monthly_tokens": sum(row.tokens for row in mine),
        "monthly_budget_usd": sum(row.cost_usd or 0.0 for row in mine),
    }
    return [
        Standing(subject, subject_id, name, amount, allowed)
        for name, amount in used.items()
        if (allowed := getattr(values, name)) is not None
    ]


def _id_of(subject: Subject, user: Caller, project_id: str) -> str:
    if subject is Subject.PROJECT:
        return project_id
    return user.key_id if subject is Subject.KEY else user.organization_id


def _number(one: Standing) -> str:
    return f"{one.allowed:g} US$" if one.limit.endswith("usd") else f"{one.allowed:.0f} tokens"
