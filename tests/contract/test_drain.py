"""A worker is drained: its runs go on elsewhere with the same numbers, and it can be taken back."""

import signal
import subprocess
import time
from collections.abc import Callable

import tinker
from redis import Redis
from tinsmith.protocol import keys

from tests.contract.conftest import BASE_MODEL, Service
from tests.contract.test_clients import train


def up(redis: Redis) -> set[str]:
    names = [name.decode() for name in redis.zrange(keys.workers(BASE_MODEL), 0, -1)]
    return {name for name in names if redis.exists(keys.lease(name))}


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def resting(redis: Redis) -> set[str]:
    return {name.decode() for name in redis.zrange(keys.DRAINED, 0, -1)}


def test_a_drained_worker_loses_nothing_rests_and_is_taken_back(
    service: Service, valkey_url: str
) -> None:
    redis = Redis.from_url(valkey_url)
    with tinker.ServiceClient(base_url=service.url, api_key=service.api_key) as client:
        twin = client.create_lora_training_client(BASE_MODEL, rank=4, seed=3)
        expected = train(tinker, twin, 6)
        run = client.create_lora_training_client(BASE_MODEL, rank=4, seed=3)
        losses = train(tinker, run, 3)
        first, [name] = service.processes["work"], up(redis)
        until(lambda: redis.hexists(keys.vitals(name), "memory_bytes"))
        redis.set(keys.drain(name), b"1", ex=60)
        until(lambda: resting(redis) == {name})
        assert not redis.exists(keys.lease(name), keys.owned(name))
        assert first.poll() is None
        service.start("work")
        try:
            losses += train(tinker, run, 2)  # by the second one, that has never seen the run
            assert len(up(redis) - {name}) == len(up(redis)) == 1
            redis.delete(keys.drain(name))
            until(lambda: len(up(redis)) == 2)
            assert name not in up(redis) | resting(redis)
            losses += train(tinker, run, 1)
            assert losses == expected
        finally:
            first.send_signal(signal.SIGTERM)
            assert first.wait(30) == 0


def test_a_drained_worker_can_be_stopped(service: Service, valkey_url: str) -> None:
    redis = Redis.from_url(valkey_url)
    until(lambda: len(up(redis)) == 1)
    [name] = up(redis)
    worker: subprocess.Popen[bytes] = service.processes["work"]
    redis.set(keys.drain(name), b"1", ex=60)
    until(lambda: resting(redis) == {name})
    worker.terminate()
    try:
        assert worker.wait(30) == 0
        assert not redis.exists(keys.drain(name), keys.DRAINED)
    finally:
        service.start("work")
    until(lambda: len(up(redis)) == 1)
