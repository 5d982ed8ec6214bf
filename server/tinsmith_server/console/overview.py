"""The first page: what is running, and whether it is healthy."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request
from tinsmith.protocol import keys

from tinsmith_server.accounts.caller import SignedIn
from tinsmith_server.console import live, pulse, run_rows
from tinsmith_server.console.pulse import SAMPLING, TRAINING, Bucket
from tinsmith_server.console.security import Viewer, console_router
from tinsmith_server.console.templating import page, piece
from tinsmith_server.db import Session
from tinsmith_server.service import Served, Service
from tinsmith_server.status import WorkerStatus, workers_of_service

router: APIRouter = console_router()
_SECONDS = 600
_LONG_WAIT_SECONDS = 60.0
_MANY_FAILED = 0.1
"""Of the requests: fewer than that are callers' own mistakes, and no sign of ill health."""


@dataclass(frozen=True)
class Health:
    tone: str
    sentence: str
    detail: str


@dataclass(frozen=True)
class Overview:
    is_empty: bool
    health: Health
    workers: Sequence[WorkerStatus]
    buckets: Sequence[Bucket]
    runs: Sequence[run_rows.RunRow]
    num_queued: int

    @property
    def training_rate(self) -> float:
        return pulse.rate(self.buckets, TRAINING, "tokens")

    @property
    def sampling_rate(self) -> float:
        return pulse.rate(self.buckets, SAMPLING, "tokens")

    @property
    def training_p95(self) -> float | None:
        return pulse.percentile(self.buckets[-31:], TRAINING, 0.95)

    @property
    def sampling_p95(self) -> float | None:
        return pulse.percentile(self.buckets[-31:], SAMPLING, 0.95)

    @property
    def num_failed(self) -> int:
        return _failed(self.buckets)


@router.get("/")
async def overview_page(request: Request, member: Viewer, service: Served) -> Response:
    return page(request, "overview.html", now=await look(service, member))


@router.get("/live/overview")
async def live_overview(request: Request, member: Viewer, service: Served) -> Response:
    async def render() -> tuple[str, object]:
        now = await look(service, member)
        newest = now.buckets[-2].begin, sum(now.buckets[-1].counts.values())
        return piece(request, "fragments/overview.html", now=now), newest

    return await live.stream(request, service, member, render)


@router.get("/live/rates.json")
async def rates(member: Viewer, service: Served) -> Response:
    """Tokens per second of the last ten minutes; the ten seconds that are filling are left out."""
    found = (await pulse.buckets(service.bus, member.organization_id, _SECONDS))[:-1]
    series = [
        {
            "label": label,
            "values": [one.count(kind, "tokens") / pulse.BUCKET_SECONDS for one in found],
        }
        for label, kind in (("training", TRAINING), ("sampling", SAMPLING))
    ]
    return JSONResponse({"x": [one.begin for one in found], "series": series})


async def look(service: Service, member: SignedIn) -> Overview:
    await service.curves.collect()
    up = await workers_of_service(service.bus)
    found = await pulse.buckets(service.bus, member.organization_id, _SECONDS)
    async with service.db.begin() as sql:
        is_empty = await _is_empty(sql, member.organization_id)
        runs = await run_rows.newest(sql, service.bus, member.organization_id, 8)
    load = keys.load(keys.organization_scope(member.organization_id))
    queued = int(await service.bus.redis.hget(load, "requests") or 0)
    waits = [one.oldest_seconds for one in runs if one.oldest_seconds is not None]
    health = judge(up, found, max(waits, default=0.0), queued)
    return Overview(is_empty, health, up, found, runs, queued)


async def _is_empty(sql: AsyncSession, organization_id: str) -> bool:
    query = select(Session.id).where(Session.organization_id == organization_id)
    return await sql.scalar(query.limit(1)) is None


def judge(
    workers: Sequence[WorkerStatus], found: Sequence[Bucket], oldest: float, queued: int
) -> Health:
    alive = [one for one in workers if one.lease_seconds is not None]
    if not alive:
        waits = f"{queued} requests wait." if queued else "New requests will wait."
        return Health("bad", "No worker is up", f"{waits} `tinsmith work` starts one.")
    recent = found[-31:]
    failed = _failed(recent)
    asked = sum(pulse.total(recent, kind, "requests") for kind in (TRAINING, SAMPLING))
    if oldest > _LONG_WAIT_SECONDS:
        return Health("warn", "Busy", f"The oldest request has waited for {oldest:.0f} s.")
    if failed > max(2, _MANY_FAILED * asked):
        return Health(
            "warn",
            f"{failed} failed in five minutes",
            f"Of {asked} requests; the timelines of the runs show which.",
        )
    working = sum(
        one.count(kind, "requests") for one in found[-7:] for kind in (TRAINING, SAMPLING)
    )
    up = f"{len(alive)} worker{'s' if len(alive) > 1 else ''} up."
    if working or queued:
        return Health("good", "Healthy, at work", f"{up} {working} requests in the last minute.")
    return Health("good", "Healthy, idle", f"{up} Nothing is waiting.")


def _failed(found: Sequence[Bucket]) -> int:
    return sum(pulse.total(found, kind, "failed") for kind in (TRAINING, SAMPLING))
