"""What an organization, a project and a key may use, as it was agreed: asked of SQL once a minute.

Rates and what runs at once are held by the queue (limits.py); this says what they are. What is stored,
and what a month may take, is reckoned here from the rows that the API reports, so the figures agree.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.errors import BadRequest, NotFound

from tinsmith_server.accounts import audit
from tinsmith_server.accounts.caller import Caller, SignedIn
from tinsmith_server.accounts.projects import check_project_name
from tinsmith_server.accounts.tables import LimitRow
from tinsmith_server.bus import Bus
from tinsmith_server.db import ApiKey, Database
from tinsmith_server.limits import AccountLimits, Limits
from tinsmith_server.remembered import Remembered

_REMEMBERED_SECONDS = 60.0


class Subject(StrEnum):
    ORGANIZATION = "organization"
    PROJECT = "project"
    KEY = "key"


@dataclass(frozen=True, kw_only=True)
class LimitValues:
    """None: no limit of its own. Money is US dollars by the prices of the settings; months are UTC's."""

    requests_per_second: float | None = None
    tokens_per_minute: int | None = None
    live_runs: int | None = None
    concurrent_samples: int | None = None
    stored_bytes: int | None = None
    monthly_tokens: int | None = None
    monthly_budget_usd: float | None = None

    def check(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not 0 <= value < 1 << 62:
                raise BadRequest(f"{name}: {value} is not a number from 0.")


NAMES = tuple(field.name for field in fields(LimitValues))
Scopes = Mapping[Subject, LimitValues]


class LimitBook:
    """The limits of a caller's account; told over `ctl` when they change."""

    def __init__(self, db: Database, bus: Bus) -> None:
        self._db, self._bus = db, bus
        self._known = Remembered(self._read, seconds=_REMEMBERED_SECONDS)
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._watch = asyncio.create_task(self._follow(), name="limit-changes")

    async def close(self) -> None:
        if self._watch:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    async def of_account(self, user: Caller, project_id: str) -> AccountLimits:
        """For the queue."""
        found = await self.values(user, project_id)
        return AccountLimits(**{subject.value: _queued(one) for subject, one in found.items()})

    async def values(self, user: Caller, project_id: str) -> Scopes:
        return await self._known.get((user.organization_id, project_id, user.key_id))

    async def changed(self, organization_id: str) -> None:
        """Here from now on, and everywhere else in a moment."""
        self._forget(organization_id)
        await self._bus.change_limits(organization_id)

    def _forget(self, organization_id: str) -> None:
        self._known.forget(lambda key, _: key[0] == organization_id)

    async def _follow(self) -> None:
        async for organization_id in self._bus.changed_limits():
            self._forget(organization_id)

    async def _read(self, account: tuple[str, str, str]) -> Scopes:
        organization_id, *_ = account
        query = select(LimitRow).where(LimitRow.organization_id == organization_id)
        async with self._db.begin() as sql:
            rows = (await sql.scalars(query)).all()
        mine = dict(zip(Subject, account, strict=True))
        return {
            subject: _values(row)
            for row in rows
            if mine[subject := Subject(row.subject)] == row.subject_id
        }


async def all_limits(
    sql: AsyncSession, organization_id: str
) -> dict[tuple[Subject, str], LimitValues]:
    """Every agreement of the organization, by whom it is for."""
    query = select(LimitRow).where(LimitRow.organization_id == organization_id)
    return {
        (Subject(row.subject), row.subject_id): _values(row)
        for row in (await sql.scalars(query)).all()
    }


async def set_limits(
    sql: AsyncSession, by: SignedIn, subject: Subject, subject_id: str, values: LimitValues
) -> None:
    """All of a subject's at once. Afterwards `LimitBook.changed` has to be told."""
    values.check()
    await _check_subject(sql, by, subject, subject_id)
    address = (by.organization_id, subject.value, subject_id)
    row = await sql.get(LimitRow, address)
    if row is None:
        row = LimitRow(organization_id=address[0], subject=address[1], subject_id=address[2])
        sql.add(row)
    for name, value in asdict(values).items():
        setattr(row, name, value)
    given = {name: value for name, value in asdict(values).items() if value is not None}
    details = {"subject": subject.value, "subject_id": subject_id, "limits": given}
    audit.record_member(sql, by, "organization_limits_changed", **details)


async def _check_subject(
    sql: AsyncSession, by: SignedIn, subject: Subject, subject_id: str
) -> None:
    if subject is Subject.KEY:
        key = await sql.get(ApiKey, subject_id)
        if key is None or key.organization_id != by.organization_id:
            raise NotFound(f"There is no key {subject_id[:40]!r}.")
    elif subject is Subject.PROJECT:
        check_project_name(subject_id)
    elif subject_id != by.organization_id:
        raise NotFound("There is no such organization.")


def _values(row: LimitRow) -> LimitValues:
    return replace(LimitValues(), **{name: getattr(row, name) for name in NAMES})


def _queued(values: LimitValues) -> Limits:
    return Limits(
        requests_per_second=values.requests_per_second,
        tokens_per_minute=values.tokens_per_minute,
        live_runs=values.live_runs,
        concurrent_samples=values.concurrent_samples,
    )
