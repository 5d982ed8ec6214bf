"""Figures for Prometheus, and request ids. The names are a promise: docs/operations.md has them all.

Requests are counted as they pass; what stands in Redis is looked up when somebody asks.
"""

import contextlib
import hmac
import re
import time
import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tinsmith.protocol.errors import Unauthorized
from tinsmith.protocol.origin import Origin

from tinsmith_server.asking import ORIGIN
from tinsmith_server.exposure import is_loopback
from tinsmith_server.service import Served, Service
from tinsmith_server.status import WorkerStatus, status
from tinsmith_server.wire import answer

router = APIRouter(include_in_schema=False)
_API = "/api/v1"
MAX_LAG_SECONDS = 10.0
_WAITING = ("requests", "bytes", "tokens", "samples")
_SENT_ID = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Of one API process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        make: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter(
            "tinsmith_http_requests", "Requests answered", ["method", "route", "status"], **make
        )
        self.seconds = Histogram(
            "tinsmith_http_request_seconds",
            "From the request to the head of its answer; polls are held on purpose",
            ["route"],
            buckets=_BUCKETS,
            **make,
        )
        self.waiting = Gauge(
            "tinsmith_queue_waiting", "What waits or is in work, of all tenants", ["what"], **make
        )
        self.oldest = Gauge(
            "tinsmith_queue_oldest_seconds", "Since the oldest of it was submitted", **make
        )
        self.runs = Gauge("tinsmith_live_runs", "Training runs that are not finished", **make)
        self.workers = Gauge("tinsmith_workers", "Workers alive", ["base_model"], **make)
        each: dict[str, Any] = {"labelnames": ["worker"], **make}
        self.cores = Gauge("tinsmith_worker_cores", "Processor cores busy with a worker", **each)
        self.memory = Gauge("tinsmith_worker_memory_bytes", "Memory that a worker holds", **each)
        self.gpu = Gauge("tinsmith_worker_gpu_share", "How busy its GPU is, 0 to 1", **each)
        self.gpu_memory = Gauge(
            "tinsmith_worker_gpu_memory_bytes", "In use on its whole GPU", **each
        )
        self.lag = Gauge(
            "tinsmith_completions_lag_seconds",
            "Since this process last heard of completions",
            **make,
        )
        self.up = Gauge("tinsmith_part_up", "Whether a part can be reached", ["part"], **make)

    def tell_workers(self, workers: Sequence[WorkerStatus]) -> None:
        """Those that are there now; one that has gone is not told any more."""
        gauges = {
            "cores": self.cores,
            "memory_bytes": self.memory,
            "gpu_share": self.gpu,
            "gpu_bytes": self.gpu_memory,
        }
        for name, gauge in gauges.items():
            gauge.clear()
            for one in workers:
                value = getattr(one.vitals, name, None)
                if value is not None:
                    gauge.labels(one.name).set(value)

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        self.requests.labels(method, route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)


class Observed:
    """Around everything: counts a request, and gives it an id that its log lines and answer carry."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, request_id = time.perf_counter(), _request_id(scope)

        headed: list[float] = []
        status = 500  # of whoever fails before an answer has begun: that one is made further out

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                ]
                headed.append(time.perf_counter())
            await send(message)

        # Never unbound: an unexpected error is logged further out, and the next request binds its own.
        structlog.contextvars.bind_contextvars(request_id=request_id)
        ORIGIN.set(partial(Origin, request_id))
        try:
            await self._app(scope, receive, observed)
        finally:
            ended = headed[0] if headed else time.perf_counter()
            self._metrics.count(scope["method"], _route(scope), status, ended - began)


def _request_id(scope: Scope) -> str:
    """The caller's own, if it is a plain word; else a new one."""
    for name, value in scope["headers"]:
        sent: str = value.decode("latin-1")
        if name == b"x-request-id" and _SENT_ID.fullmatch(sent):
            return sent
    return uuid.uuid4().hex[:16]


def _route(scope: Scope) -> str:
    """The pattern, never the path: paths hold names of runs, and there is no end of them."""
    route = scope.get("route")
    if route is None:
        return str(scope["path"]) if scope.get("direct") else "unmatched"
    below = scope["path"].startswith(f"{_API}/") and not route.path.startswith(_API)
    return f"{_API}{route.path}" if below else str(route.path)


@router.get("/metrics")
async def metrics(request: Request, service: Served) -> Response:
    """For this machine, or for whoever sends TINSMITH_METRICS_TOKEN as a bearer token."""
    _check_scraper(request, service)
    figures: Metrics = request.app.state.metrics
    await _look_up(service, figures)
    return Response(generate_latest(figures.registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/readyz")
async def ready(request: Request, service: Served) -> Response:
    """503 with the part that is missing: send this process no requests for now."""
    parts = await _parts(service)
    return answer(parts, 200 if all(part == "ok" for part in parts.values()) else 503)


def _check_scraper(request: Request, service: Service) -> None:
    token = service.settings.metrics_token
    if token is None:
        forwarded = "x-forwarded-for" in request.headers or "forwarded" in request.headers
        if request.client and is_loopback(request.client.host) and not forwarded:
            return
        raise Unauthorized("Set TINSMITH_METRICS_TOKEN and send it as a bearer token.")
    sent = request.headers.get("authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(sent.encode(), token.encode()):
        raise Unauthorized("Send TINSMITH_METRICS_TOKEN as a bearer token.")


async def _parts(service: Service) -> dict[str, str]:
    """`ok`, or in a word what is wrong."""
    found = {"database": "unreachable", "redis": "unreachable", "completions": "ok"}
    with contextlib.suppress(OperationalError):
        async with service.db.begin() as sql:
            await sql.execute(text("SELECT 1"))
        found["database"] = "ok"
    with contextlib.suppress(RedisError):
        await service.bus.redis.ping()
        found["redis"] = "ok"
    if service.bus.silent_seconds > MAX_LAG_SECONDS:
        found["completions"] = f"not heard of for {service.bus.silent_seconds:.0f} s"
    return found


async def _look_up(service: Service, figures: Metrics) -> None:
    parts = await _parts(service)
    for part, state in parts.items():
        figures.up.labels(part).set(state == "ok")
    figures.lag.set(service.bus.silent_seconds)
    if parts["redis"] != "ok":
        return
    seen = await status(service.bus)
    for what in _WAITING:
        figures.waiting.labels(what).set(getattr(seen, f"queued_{what}"))
    figures.oldest.set(seen.oldest_seconds or 0.0)
    figures.runs.set(len(seen.runs))
    figures.tell_workers(seen.workers)
    for card in await service.bus.models():
        figures.workers.labels(card.name).set(await service.bus.workers_of(card.name))
