"""Workers as Redis knows them."""

from collections.abc import Sequence
from dataclasses import dataclass

from tinsmith.protocol import keys

from tinsmith_server.bus import Bus


@dataclass(frozen=True)
class WorkerRow:
    name: str
    base_models: Sequence[str]
    lease_seconds: float | None
    """What is left of its lease; None: it is gone, and its runs wait to be adopted."""
    num_runs: int


async def workers(bus: Bus) -> list[WorkerRow]:
    holding: dict[str, list[str]] = {}
    for base in sorted(name.decode() for name in await bus.redis.smembers(keys.MODELS)):
        for name in await bus.redis.zrange(keys.workers(base), 0, -1):
            holding.setdefault(name.decode(), []).append(base)
    async with bus.redis.pipeline(transaction=False) as pipe:
        for name in holding:
            pipe.pttl(keys.lease(name))
            pipe.scard(keys.owned(name))
        found = await pipe.execute()
    rows = zip(holding.items(), found[::2], found[1::2], strict=True)
    return [
        WorkerRow(name, bases, lease / 1000 if lease > 0 else None, runs)
        for (name, bases), lease, runs in rows
    ]
