"""The state of the service in one look: workers, runs and what waits. Read from Redis alone.

Nothing here is remembered: each call asks again, a few round trips however many runs there are.
"""

from collections.abc import Sequence
from typing import Any

from tinsmith.protocol import keys
from tinsmith.protocol.bodies import Answer

from tinsmith_server.bus import Bus

_RESTS_SECONDS = 10
"""One that rests says so twice a second."""


class Vitals(Answer, kw_only=True, frozen=True):
    """What a worker takes of its machine, as it told last. None: its machine does not say."""

    cores: float
    """Busy with it, on average since it told before."""
    of_cores: float
    memory_bytes: float
    of_memory_bytes: float
    gpu_share: float | None = None
    gpu_bytes: float | None = None
    """In use on the whole device."""
    of_gpu_bytes: float | None = None


class WorkerStatus(Answer, kw_only=True, frozen=True):
    name: str
    base_models: list[str]
    lease_seconds: float | None
    """What is left of its lease; None: it is dead, and its runs wait to be adopted."""
    num_runs: int
    num_samples: int
    """Sampling requests that it holds."""
    leaving: bool = False
    """An operator drains it."""
    vitals: Vitals | None = None


class RunStatus(Answer, kw_only=True, frozen=True):
    run_id: str
    organization_id: str
    base_model: str
    worker: str | None
    """None: no live worker could take it yet."""
    epoch: int
    done: int
    """The last seq that has its result."""
    num_waiting: int
    """Requests without a result, those in work among them."""
    oldest_seconds: float | None
    """Since the first of them was submitted."""
    log_length: int
    """Ops that a recovery would replay after the snapshot."""
    snapshot_seq: int
    """-1: there is none yet."""
    snapshot_age_seconds: float | None
    adopted_seconds_ago: float | None


class Status(Answer, kw_only=True, frozen=True):
    workers: list[WorkerStatus]
    runs: list[RunStatus]
    """The one that waits longest first."""
    queued_requests: int
    """Of training and sampling together, those in work among them; so are the next two."""
    queued_bytes: int
    queued_tokens: int
    queued_samples: int
    oldest_seconds: float | None
    last_adoption_seconds_ago: float | None


async def status(bus: Bus, organization_id: str | None = None) -> Status:
    """Of the whole service, or with the runs and the queue of one organization only."""
    redis = bus.redis
    seconds, microseconds = await redis.time()
    now = seconds + microseconds / 1e6
    bases = await _bases(redis)
    workers = await _workers(redis, bases)
    homes = [one.name for one in workers] + [keys.homeless(base) for base in bases]
    runs = [
        run
        for run in await _runs(redis, homes, now)
        if organization_id in (None, run.organization_id)
    ]
    scope = (
        keys.SERVER_SCOPE if organization_id is None else keys.organization_scope(organization_id)
    )
    load = await redis.hmget(keys.load(scope), "requests", "bytes", "tokens", "samples")
    requests, size, tokens, samples = (int(value or 0) for value in load)
    return Status(
        workers=workers,
        runs=sorted(runs, key=lambda run: -(run.oldest_seconds or 0)),
        queued_requests=requests,
        queued_bytes=size,
        queued_tokens=tokens,
        queued_samples=samples,
        oldest_seconds=max(
            (run.oldest_seconds for run in runs if run.oldest_seconds), default=None
        ),
        last_adoption_seconds_ago=min(
            (run.adopted_seconds_ago for run in runs if run.adopted_seconds_ago is not None),
            default=None,
        ),
    )


async def workers_of_service(bus: Bus) -> list[WorkerStatus]:
    """Those alone, by name: a few round trips however many runs there are."""
    return await _workers(bus.redis, await _bases(bus.redis))


async def drained_workers(bus: Bus) -> list[str]:
    """Those that have left and rest, by name."""
    seconds, _ = await bus.redis.time()
    found = await bus.redis.zrangebyscore(keys.DRAINED, seconds - _RESTS_SECONDS, "+inf")
    return sorted(name.decode() for name in found)


async def _bases(redis: Any) -> list[str]:
    return sorted(name.decode() for name in await redis.smembers(keys.MODELS))


async def _workers(redis: Any, bases: Sequence[str]) -> list[WorkerStatus]:
    holding: dict[str, list[str]] = {}
    for base in bases:
        for name in await redis.zrange(keys.workers(base), 0, -1):
            holding.setdefault(name.decode(), []).append(base)
    return [await _worker(redis, name, holds) for name, holds in sorted(holding.items())]


async def _worker(redis: Any, name: str, holds: list[str]) -> WorkerStatus:
    async with redis.pipeline(transaction=False) as pipe:
        pipe.pttl(keys.lease(name))
        pipe.scard(keys.owned(name))
        pipe.exists(keys.drain(name))
        pipe.hgetall(keys.vitals(name))
        for base in holds:
            pipe.scard(keys.held(name, base))
        lease_ms, num_runs, leaving, told, *samples = await pipe.execute()
    return WorkerStatus(
        name=name,
        base_models=holds,
        lease_seconds=lease_ms / 1000 if lease_ms > 0 else None,
        num_runs=num_runs,
        num_samples=sum(samples),
        leaving=bool(leaving),
        vitals=Vitals(**{key.decode(): float(value) for key, value in told.items()})
        if told
        else None,
    )


_FIELDS = (
    "tenant", "base_model", "owner", "epoch", "done", "snapshot_seq", "snapshot_at", "adopted_at",
)  # fmt: skip


async def _runs(redis: Any, homes: Sequence[str], now: float) -> list[RunStatus]:
    async with redis.pipeline(transaction=False) as pipe:
        for home in homes:
            pipe.smembers(keys.owned(home))
        names = sorted(name.decode() for found in await pipe.execute() for name in found)
        for name in names:
            pipe.hmget(keys.run(name), list(_FIELDS))
            pipe.zcard(keys.queue(name))
            pipe.llen(keys.log(name))
            pipe.zrange(keys.queue(name), 0, 0)
        answers = await pipe.execute()
        rows = list(zip(names, *(answers[part::4] for part in range(4)), strict=True))
        for _, _, _, _, first in rows:
            pipe.hget(keys.future(first[0].decode() if first else ""), "at")
        began = await pipe.execute()
    return [
        _run(name, fields, waiting, logged, at, now)
        for (name, fields, waiting, logged, _), at in zip(rows, began, strict=True)
        if fields[0] is not None
    ]


def _run(
    name: str,
    fields: Sequence[bytes | None],
    waiting: int,
    logged: int,
    at: bytes | None,
    now: float,
) -> RunStatus:
    tenant, base, owner, epoch, done, snapshot_seq, snapshot_at, adopted_at = (
        (value or b"").decode() for value in fields
    )
    return RunStatus(
        run_id=name,
        organization_id=tenant,
        base_model=base,
        worker=None if owner == keys.homeless(base) else owner,
        epoch=int(epoch),
        done=int(done),
        num_waiting=waiting,
        oldest_seconds=_since(at, now),
        log_length=logged,
        snapshot_seq=int(snapshot_seq),
        snapshot_age_seconds=_since(snapshot_at, now),
        adopted_seconds_ago=_since(adopted_at, now),
    )


def _since(microseconds: bytes | str | None, now: float) -> float | None:
    return max(0.0, now - int(microseconds) / 1e6) if microseconds else None
