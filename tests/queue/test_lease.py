"""Who counts as dead: whoever gives no sign for a lease, and sooner whoever has left the line."""

from collections.abc import Iterator

import pytest
from redis import Redis
from tinsmith.protocol import keys
from tinsmith_worker import lease as lease_module
from tinsmith_worker.lease import Lease, Watch
from tinsmith_worker.link import Link

LEASE_SECONDS = 600.0
PATIENCE_SECONDS = 3.0


@pytest.fixture
def redis(valkey_url: str) -> Iterator[Redis]:
    with Redis.from_url(valkey_url) as made:
        made.flushall()
        yield made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The last entry is now."""
    times = [100.0]
    monkeypatch.setattr(lease_module.time, "monotonic", lambda: times[-1])
    return times


def watch(url: str) -> Watch:
    return Watch(Link(url), PATIENCE_SECONDS)


def lease(url: str) -> Lease:
    made = Lease(url, "a", LEASE_SECONDS, on_error=print, vitals=lambda: {"cores": 1.0})
    made.start()
    return made


def is_held(redis: Redis) -> bool:
    return bool(redis.exists(keys.lease("a")))


def test_who_has_left_the_line_is_dead_after_a_while(
    redis: Redis, valkey_url: str, clock: list[float]
) -> None:
    lease(valkey_url).stop()  # as a kill does: the connection is gone and the lease is there
    other = watch(valkey_url)
    other.look(["a"])
    clock.append(clock[-1] + PATIENCE_SECONDS - 0.1)
    other.look(["a"])
    assert is_held(redis)
    clock.append(clock[-1] + 0.2)
    other.look(["a"])
    assert not is_held(redis)


def test_who_is_silent_on_an_open_line_keeps_its_lease(
    redis: Redis, valkey_url: str, clock: list[float]
) -> None:
    held = lease(valkey_url)  # the next renewal is a minute away
    other = watch(valkey_url)
    for _ in range(3):
        other.look(["a"])
        clock.append(clock[-1] + 2 * PATIENCE_SECONDS)
    assert is_held(redis)
    held.stop()


def test_a_line_that_broke_and_was_replaced_is_no_death(
    redis: Redis, valkey_url: str, clock: list[float]
) -> None:
    held = lease(valkey_url)
    other = watch(valkey_url)
    number = redis.get(keys.lease("a")).removeprefix(b"connection ")
    redis.client_kill_filter(_id=number.decode())
    other.look(["a"])
    clock.append(clock[-1] + 2 * PATIENCE_SECONDS)
    held._renew()
    other.look(["a"])
    assert is_held(redis)
    clock.append(clock[-1] + 2 * PATIENCE_SECONDS)
    other.look(["a"])
    assert is_held(redis)
    held.stop()


def test_a_line_that_breaks_twice_is_given_its_time_each_time(
    redis: Redis, valkey_url: str, clock: list[float]
) -> None:
    other = watch(valkey_url)
    for _ in range(3):  # never is one line gone for long
        lease(valkey_url).stop()
        other.look(["a"])
        clock.append(clock[-1] + 0.9 * PATIENCE_SECONDS)
    assert is_held(redis)


def test_where_connections_may_not_be_seen_only_the_lease_counts(
    redis: Redis, valkey_url: str, clock: list[float]
) -> None:
    rights = {"categories": ["+@all"], "commands": ["-client|list"], "keys": ["*"]}
    redis.acl_setuser("blind", enabled=True, nopass=True, **rights)  # type: ignore[arg-type]
    lease(valkey_url).stop()
    other = watch(valkey_url.replace("unix://", "unix://blind:any@"))
    for _ in range(3):
        other.look(["a"])
        clock.append(clock[-1] + 2 * PATIENCE_SECONDS)
    assert is_held(redis)
    redis.acl_deluser("blind")
