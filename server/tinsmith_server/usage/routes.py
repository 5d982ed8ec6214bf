"""What was used and what is stored."""

from datetime import datetime, timedelta

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy import func, select
from tinsmith.protocol.errors import BadRequest
from tinsmith.protocol.report_bodies import StorageReport, StoredNow

from tinsmith_server.accounts.urns import key_urn
from tinsmith_server.auth import User
from tinsmith_server.checkpoints.repository import listed
from tinsmith_server.db import Checkpoint, Session, TrainingRun, now
from tinsmith_server.sdk_version import sdk_version
from tinsmith_server.service import Served
from tinsmith_server.times import in_utc
from tinsmith_server.usage.prices import BYTES_PER_GIGABYTE, cost
from tinsmith_server.usage.reports import Window, usage_report
from tinsmith_server.wire import answer

router = APIRouter()
_LONGEST = timedelta(days=14)
_KNOWS_FREE = (0, 33)
"""The first SDK that does not refuse an event with the field `free`."""


@router.get("/billing/usage/events")
async def usage_events(
    request: Request, starting_on: datetime, ending_before: datetime, user: User, service: Served
) -> Response:
    """Counts stand as of this moment: what is still on its way is brought in first."""
    window = _window(starting_on, ending_before)
    await service.usage.collect()
    async with service.db.begin() as sql:
        report = await usage_report(sql, user, window, service.settings.prices)
    if sdk_version(request) < _KNOWS_FREE:
        for event in report.data:
            event.event_info.pop("free", None)
    return answer(report)


def _window(starting_on: datetime, ending_before: datetime) -> Window:
    begin, end = _hour(starting_on, "starting_on"), _hour(ending_before, "ending_before")
    if begin > now():
        raise BadRequest("starting_on: it is in the future.")
    if not begin < end <= begin + _LONGEST:
        raise BadRequest("ending_before: give a time after starting_on, at most 14 days later.")
    return Window(begin, end)


def _hour(moment: datetime, field: str) -> datetime:
    moment = in_utc(moment, field)
    if moment.minute or moment.second or moment.microsecond:
        raise BadRequest(f"{field}: give a full hour of UTC.")
    return moment


@router.get("/billing/usage/checkpoints/current")
async def current_storage(user: User, service: Served, project_id: str | None = None) -> Response:
    """Listed checkpoints by project and by the key whose session made them."""
    query = (
        select(Session.project_id, Session.key_id, func.count(), func.sum(Checkpoint.size_bytes))
        .join(TrainingRun, TrainingRun.session_id == Session.id)
        .join(Checkpoint, Checkpoint.run_id == TrainingRun.id)
        .where(Checkpoint.organization_id == user.organization_id, listed())
        .group_by(Session.project_id, Session.key_id)
        .order_by(Session.project_id, Session.key_id)
    )
    if project_id is not None:
        query = query.where(Session.project_id == project_id)
    async with service.db.begin() as sql:
        rows = (await sql.execute(query)).all()
    rate = service.settings.prices.storage
    found = [
        StoredNow(
            checkpoint_count=count,
            size_bytes=int(size or 0),
            size_gigabytes=int(size or 0) / BYTES_PER_GIGABYTE,
            project_id=project,
            org_user_urn=key_urn(key_id) if key_id else None,
            estimated_monthly_cost_usd=cost(rate, int(size or 0) / BYTES_PER_GIGABYTE),
        )
        for project, key_id, count, size in rows
    ]
    return answer(StorageReport(data=found, effective_rate_usd_per_gigabyte_month=rate))
