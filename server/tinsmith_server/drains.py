"""Operators ask a worker to leave, and take it back. Whoever asks stands in their audit log.

A worker looks once a second: it finishes what is in work, snapshots its runs, gives them to the others,
and rests until it is taken back or told to stop.
"""

from tinsmith.protocol import keys
from tinsmith.protocol.errors import NotFound

from tinsmith_server.accounts import audit
from tinsmith_server.accounts.caller import SignedIn
from tinsmith_server.service import Service
from tinsmith_server.status import drained_workers

_ASKED_SECONDS = 24 * 3600


async def drain(service: Service, by: SignedIn, worker: str) -> None:
    if not await service.bus.redis.exists(keys.lease(worker)):
        raise NotFound(f"There is no worker {worker[:100]!r} up.")
    async with service.db.begin() as sql:
        audit.record_member(sql, by, "worker_drained", worker=worker)
    await service.bus.redis.set(keys.drain(worker), b"1", ex=_ASKED_SECONDS)


async def take_back(service: Service, by: SignedIn, worker: str) -> None:
    """One that has left already; what is still leaving cannot be held."""
    if worker not in await drained_workers(service.bus):
        raise NotFound(f"There is no worker {worker[:100]!r} that has left and rests.")
    async with service.db.begin() as sql:
        audit.record_member(sql, by, "worker_taken_back", worker=worker)
    await service.bus.redis.delete(keys.drain(worker))
