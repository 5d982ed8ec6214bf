"""A worker's sign of life, and how the others see that it gives none any more.

A lease ends by itself when nobody renews it: of a machine that is gone, of a process that hangs. Of a
process that has died more is known, for its system closes its connections at once. So a lease names the
connection that renews it, and whoever finds that one gone for a while ends the lease before its time.
An error of that kind costs a replay and nothing else: epochs fence whoever was taken for dead.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from redis import Redis
from redis.exceptions import RedisError, ResponseError
from tinsmith.protocol import keys

from tinsmith_worker.link import Link

_RENEWALS_PER_LEASE = 10
GONE_SHARE = 0.3
"""Of a lease: as long may a connection be gone, or three renewals, before its worker counts as dead."""
_VITALS_EVERY = 3
_BY_CONNECTION = b"connection "


class Lease:
    """Says `this worker lives` to Redis, and what it takes, from a thread: a forward pass may outlast
    a lease.
    """

    def __init__(
        self,
        redis_url: str,
        worker: str,
        seconds: float,
        on_error: Callable[[str], None],
        vitals: Callable[[], Mapping[str, float]],
    ) -> None:
        self._redis: Any = Redis.from_url(redis_url)
        self._key, self._vitals_key = keys.lease(worker), keys.vitals(worker)
        self._vitals = vitals
        self._seconds = seconds
        self._on_error = on_error
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def start(self) -> None:
        self._renew()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._redis.close()

    def _keep(self) -> None:
        turn, stopped = 0, False
        while not stopped:
            try:
                self._renew()
                if turn % _VITALS_EVERY == 0:
                    self._tell_vitals()
            except RedisError as error:
                self._on_error(type(error).__name__)
            turn += 1
            stopped = self._stop.wait(self._seconds / _RENEWALS_PER_LEASE)

    def _renew(self) -> None:
        """The number is asked each time: a connection that broke was replaced without a word."""
        value = _BY_CONNECTION + str(self._redis.client_id()).encode()
        self._redis.set(self._key, value, px=int(self._seconds * 1000))

    def _tell_vitals(self) -> None:
        told = {name: f"{value:.12g}" for name, value in self._vitals().items()}
        self._redis.hset(self._vitals_key, mapping=told)
        self._redis.pexpire(self._vitals_key, int(self._seconds * 3000))


class Watch:
    """Ends the leases of workers whose connections are gone."""

    def __init__(self, link: Link, patience_seconds: float) -> None:
        self._link, self._patience_seconds = link, patience_seconds
        self._missing: dict[str, tuple[bytes, float]] = {}
        """By worker: the lease whose connection is gone, and since when."""

    def look(self, workers: Iterable[str]) -> None:
        leases = self._leases(list(workers))
        alive = self._connected(leases.values())
        now = time.monotonic()
        missing = {worker: lease for worker, lease in leases.items() if lease not in alive}
        for worker, lease in missing.items():
            known = self._missing.get(worker)
            if known is None or known[0] != lease:  # by now it has another connection
                self._missing[worker] = (lease, now)
            elif now - known[1] >= self._patience_seconds:
                self._link.run("bury", worker, lease)
        for worker in self._missing.keys() - missing.keys():
            del self._missing[worker]

    def _leases(self, workers: list[str]) -> dict[str, bytes]:
        if not workers:
            return {}
        values = self._link.redis.mget([keys.lease(worker) for worker in workers])
        return {
            worker: value
            for worker, value in zip(workers, values, strict=True)
            if value is not None and value.startswith(_BY_CONNECTION)
        }

    def _connected(self, leases: Iterable[bytes]) -> set[bytes]:
        """Those whose connection is there; all of them where Redis does not let us see."""
        asked = set(leases)
        numbers = [lease.removeprefix(_BY_CONNECTION).decode() for lease in asked]
        if not numbers:
            return asked
        try:
            found = cast(list[dict[str, str]], self._link.redis.client_list(client_id=numbers))
        except ResponseError:
            return asked
        return {_BY_CONNECTION + one["id"].encode() for one in found}
