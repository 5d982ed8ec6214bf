"""The operators' page: workers, models, queues, background jobs that failed. Of the whole service."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from sqlalchemy import func, select
from starlette.requests import Request
from tinsmith.protocol import keys

from tinsmith_server import drains
from tinsmith_server.console import live
from tinsmith_server.console.security import Operator, console_router, redirect
from tinsmith_server.console.templating import page, piece
from tinsmith_server.db import ApiKey, Checkpoint, Organization, TrainingRun
from tinsmith_server.service import Served, Service
from tinsmith_server.status import drained_workers, workers_of_service

router: APIRouter = console_router()


@router.get("/operators")
async def operators_page(request: Request, member: Operator, service: Served) -> Response:
    return page(request, "operators.html", **await _look(service), **await _counts(service))


@router.get("/operators/live")
async def live_operators(request: Request, member: Operator, service: Served) -> Response:
    async def render() -> tuple[str, object]:
        return piece(request, "fragments/operators.html", **await _look(service)), None

    return await live.stream(request, service, member, render)


@router.post("/operators/jobs/{job_id}/again")
async def again(job_id: str, member: Operator, service: Served) -> Response:
    await service.jobs.again(job_id)
    return redirect("/operators")


@router.post("/operators/workers/{worker_id}/drain")
async def drain(worker_id: str, member: Operator, service: Served) -> Response:
    await drains.drain(service, member, worker_id)
    return redirect("/operators")


@router.post("/operators/workers/{worker_id}/back")
async def take_back(worker_id: str, member: Operator, service: Served) -> Response:
    await drains.take_back(service, member, worker_id)
    return redirect("/operators")


async def _look(service: Service) -> dict[str, Any]:
    cards = await service.bus.models()
    redis = service.bus.redis
    async with redis.pipeline(transaction=False) as pipe:
        for card in cards:
            pipe.xlen(keys.sampling(card.name))
            pipe.scard(keys.owned(keys.homeless(card.name)))
        found = await pipe.execute()
    info = await redis.info()
    return {
        "workers": await workers_of_service(service.bus),
        "drained": await drained_workers(service.bus),
        "models": list(zip(cards, found[::2], found[1::2], strict=True)),
        "background": await service.jobs.overview(),
        "redis": {
            name: info.get(name)
            for name in ("used_memory", "connected_clients", "uptime_in_seconds")
        },
        "load": await _load(service),
        "steps_waiting": await redis.xlen(keys.STEPS),
    }


async def _counts(service: Service) -> dict[str, Any]:
    tables = {
        "organizations": Organization,
        "keys": ApiKey,
        "runs": TrainingRun,
        "checkpoints": Checkpoint,
    }
    async with service.db.begin() as sql:
        counts = {
            name: await sql.scalar(select(func.count()).select_from(table))
            for name, table in tables.items()
        }
    return {"counts": counts}


async def _load(service: Service) -> dict[str, int]:
    """Requests of the whole service without a result, those in work among them."""
    names = ("requests", "tokens", "bytes", "samples")
    found = await service.bus.redis.hmget(keys.load(keys.SERVER_SCOPE), *names)
    return {name: int(value or 0) for name, value in zip(names, found, strict=True)}
