"""Sessions that fall silent, come back, stay away, or are finished: what becomes of their work."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from tinsmith.protocol import keys
from tinsmith_server.limits import Limits
from tinsmith_server.settings import Settings
from tinsmith_worker.queue import Fenced, Queue

from tests.conftest import running_valkey
from tests.server.test_hot_path import CARD, client_of, new_run, running, sample, step


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_valkey(tmp_path_factory.mktemp("valkey")) as url:
        yield url


@pytest.fixture
def settings(tmp_path: Path, redis_url: str) -> Settings:
    return Settings(
        data_dir=tmp_path,
        database_url=f"sqlite+aiosqlite:///{tmp_path / 'tinsmith.db'}",
        redis_url=redis_url,
        store_url=str(tmp_path / "store"),
        key_pepper=b"pepper",
        poll_seconds=0.02,
    )


@pytest.fixture
def worker(redis_url: str) -> Iterator[Queue]:
    queue = Queue(redis_url, "a")
    queue.redis.flushall()
    queue.redis.set(keys.lease("a"), b"1", px=600_000)
    queue.announce([CARD])
    yield queue
    queue.redis.close()


@asynccontextmanager
async def busy(settings: Settings) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient, str, str]]:
    """With a run that has an op waiting, and a sampler that has a sample."""
    async with running(settings) as app, await client_of(app) as http:
        run, sampler = await new_run(http)
        assert (await http.post("/optim_step", json=step(run, 1))).status_code == 200
        assert (await http.post("/asample", json=sample(sampler, 1))).status_code == 200
        yield app, http, run, sampler


async def told(http: httpx.AsyncClient, request_id: str) -> str:
    answer = await http.post("/retrieve_future", json={"request_id": request_id})
    return str(answer.json().get("error", answer.status_code))


async def silent_for(app: FastAPI, session_id: str, seconds: int, since: str = keys.BEATS) -> None:
    await app.state.service.bus.redis.zincrby(since, -seconds, session_id)
    await app.state.service.liveness.look()


def test_a_silent_session_is_released_and_may_come_back(settings: Settings, worker: Queue) -> None:
    async def flow() -> None:
        async with busy(settings) as (app, http, run, sampler):
            session = run.split(":")[0]
            await silent_for(app, session, 290)
            assert await told(http, f"{run}:1") == "408"  # a poll is a sign of life
            await silent_for(app, session, 290)
            assert await told(http, f"{run}:1") == "408"
            await silent_for(app, session, 301)
            for request_id in (f"{run}:0", f"{run}:1", f"{sampler}:1"):
                assert "released" in await told(http, request_id)
            assert worker.notices().resting == {run}
            assert worker.samples.take(CARD.name, 5) == []
            beat = await http.post("/session_heartbeat", json={"session_id": session})
            assert beat.status_code == 200
            assert (await http.post("/optim_step", json=step(run, 2))).status_code == 200
            await silent_for(app, session, 0)
            assert await told(http, f"{run}:2") == "408"

    asyncio.run(flow())


def test_a_session_that_stays_silent_is_finished(settings: Settings, worker: Queue) -> None:
    async def flow() -> None:
        async with busy(settings) as (app, http, run, _):
            session = run.split(":")[0]
            await silent_for(app, session, 301)
            await silent_for(app, session, 24 * 3600 + 1, since=keys.SILENT)
            beat = await http.post("/session_heartbeat", json={"session_id": session})
            assert beat.status_code == 410
            late = await http.post("/optim_step", json=step(run, 2))
            assert late.status_code == 400
            assert "finished" in late.text
            assert await app.state.service.bus.redis.exists(keys.run(run)) == 0
            assert "released" in await told(http, f"{run}:1")  # what was told stays told

    asyncio.run(flow())


def test_a_finished_session_ends_its_work_and_its_snapshot(
    settings: Settings, worker: Queue, tmp_path: Path
) -> None:
    async def flow() -> None:
        async with busy(settings) as (_, http, run, sampler):
            [taken] = worker.take({run: (0, -1)}, 100)
            folder = tmp_path / "store" / "snapshots" / run
            folder.mkdir(parents=True)
            (folder / "manifest.json").write_text("{}")
            worker.snapshot_taken(run, taken.epoch, f"snapshots/{run}", 0)
            done = await http.post(
                f"/sessions/{run.split(':')[0]}/finish", json={"reason": {"type": "success"}}
            )
            assert done.status_code == 200
            for request_id in (f"{run}:1", f"{sampler}:1"):
                assert "finished" in await told(http, request_id)
            with pytest.raises(Fenced):
                worker.record(run)
            assert not (folder / "manifest.json").exists()
            assert worker.notices().ended == {run}

    asyncio.run(flow())


def test_a_refused_submit_says_when_to_come_again_and_polls_say_why(
    settings: Settings, worker: Queue
) -> None:
    narrow = replace(settings, queued_per_run=Limits(queued_requests=2))

    async def flow() -> None:
        async with busy(narrow) as (_, http, run, sampler):
            refused = await http.post("/optim_step", json=step(run, 2))
            assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
            assert "2 requests waiting" in refused.json()["detail"]
            poll = await http.post("/retrieve_future", json={"request_id": f"{run}:1"})
            assert poll.status_code == 408
            assert poll.json()["queue_state"] == "paused_capacity"
            assert "2 requests waiting" in poll.json()["queue_state_reason"]
            other = await http.post("/retrieve_future", json={"request_id": f"{sampler}:1"})
            assert other.json()["queue_state"] == "active"

    asyncio.run(flow())
