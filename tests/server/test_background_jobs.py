"""Jobs on a real queue: what is told of them while they wait, when they are done, and to whom."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from rq import Queue, SimpleWorker
from rq.serializers import JSONSerializer
from tinsmith.protocol.errors import NotFound, TooMany
from tinsmith_server.accounts.caller import Caller
from tinsmith_server.background.jobs import QUEUE, BackgroundJobs
from tinsmith_server.background.process import report

from tests.conftest import running_valkey

A, B = Caller("key-a", "org-a"), Caller("key-b", "org-b")
ONE_PROJECT = Caller("key-p", "org-a", project_id="p")
HERE = "tests.server.test_background_jobs"


def halve(job_id: str, number: int) -> dict[str, object]:
    report(0.5, "halving")
    if number % 2:
        return {"error": f"number: {number} is odd."}
    return {"result": {"half": number // 2}}


def breaks(job_id: str) -> None:
    raise RuntimeError("something nobody foresaw, with a secret in it")


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    with running_valkey(tmp_path) as url:
        yield url


def work_off(redis_url: str) -> None:
    redis = Redis.from_url(redis_url)
    queue = Queue(QUEUE, connection=redis, serializer=JSONSerializer)
    SimpleWorker([queue], connection=redis, serializer=JSONSerializer).work(burst=True)
    redis.close()


def test_a_job_tells_its_own_organization_how_it_went(redis_url: str) -> None:
    async def flow() -> None:
        jobs = BackgroundJobs(redis_url)
        told = await jobs.enqueue(f"{HERE}.halve", A, "halving", number=6)
        assert (told.state, told.progress, told.kind) == ("queued", 0.0, "halving")
        odd = await jobs.enqueue(f"{HERE}.halve", A, "halving", number=7)
        broken = await jobs.enqueue(f"{HERE}.breaks", A, "breaking")
        work_off(redis_url)
        done = await jobs.look(A, told.job_id)
        assert (done.state, done.progress, done.note) == ("done", 1.0, "halving")
        assert done.result == {"half": 3}
        refused = await jobs.look(A, odd.job_id)
        assert (refused.state, refused.progress) == ("failed", 0.5)
        assert refused.error == "number: 7 is odd."
        failed = await jobs.look(A, broken.job_id)
        assert failed.state == "failed"
        assert "secret" not in str(failed.error)
        for user, job_id in ((B, told.job_id), (ONE_PROJECT, told.job_id), (A, "no"), (A, "a:b")):
            with pytest.raises(NotFound):
                await jobs.look(user, job_id)
        mine = await jobs.enqueue(f"{HERE}.halve", ONE_PROJECT, "halving", number=6)
        for user in (ONE_PROJECT, A):
            assert (await jobs.look(user, mine.job_id)).job_id == mine.job_id
        await jobs.close()

    asyncio.run(flow())


def test_an_organization_has_so_many_jobs_at_a_time(redis_url: str) -> None:
    async def flow() -> None:
        jobs = BackgroundJobs(redis_url)
        for _ in range(8):
            await jobs.enqueue(f"{HERE}.halve", A, "halving", number=6)
        with pytest.raises(TooMany, match="8 of yours"):
            await jobs.enqueue(f"{HERE}.halve", A, "halving", number=6)
        await jobs.enqueue(f"{HERE}.halve", B, "halving", number=6)
        work_off(redis_url)
        await jobs.enqueue(f"{HERE}.halve", A, "halving", number=6)
        await jobs.close()

    asyncio.run(flow())
