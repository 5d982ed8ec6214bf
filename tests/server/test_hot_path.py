"""The calls that come hundreds of times a second: no SQL, no search for the route, the same refusals."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import event
from tinsmith.protocol import keys
from tinsmith.protocol.jobs import Kind, ModelCard, Result, failure
from tinsmith_server.accounts.keys import KeyTerms, create
from tinsmith_server.app import DIRECT, create_app
from tinsmith_server.bus import Bus
from tinsmith_server.futures.routes import spread
from tinsmith_server.runs import routes as runs
from tinsmith_server.settings import Settings
from tinsmith_worker.queue import Queue

from tests.conftest import running_valkey

CARD = ModelCard(name="tiny", family="llama", vocab_size=8, max_context_length=8, max_lora_rank=8)


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its own, because a model is announced that no worker serves."""
    with running_valkey(tmp_path_factory.mktemp("valkey")) as url:
        Queue(url, "announcer").announce([CARD])
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


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[FastAPI]:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield app


async def client_of(app: FastAPI) -> httpx.AsyncClient:
    async with app.state.service.db.begin() as sql:
        _, key = await create(sql, b"pepper", KeyTerms(name="test"))
    return client(app, key)


def client(app: FastAPI, key: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app)  # raises what no handler expected
    headers = {"X-API-Key": key}
    return httpx.AsyncClient(transport=transport, base_url="http://t/api/v1", headers=headers)


async def new_run(http: httpx.AsyncClient) -> tuple[str, str]:
    """Ids of a run and of a sampler."""
    session = (await http.post("/create_session", json={})).json()["session_id"]
    base = {"session_id": session, "base_model": CARD.name}
    model = base | {"model_seq_id": 0, "lora_config": {"rank": 2}}
    run = (await http.post("/create_model", json=model)).json()["model_id"]
    sampler = await http.post(
        "/create_sampling_session", json=base | {"sampling_session_seq_id": 1}
    )
    return run, sampler.json()["sampling_session_id"]


def step(run: str, seq_id: int) -> dict[str, Any]:
    return {"model_id": run, "seq_id": seq_id, "adam_params": {}}


def sample(sampler: str, seq_id: int) -> dict[str, Any]:
    prompt = {"chunks": [{"tokens": [1]}]}
    return {
        "sampling_session_id": sampler,
        "seq_id": seq_id,
        "prompt": prompt,
        "sampling_params": {"max_tokens": 1},
    }


async def every_hot_call(http: httpx.AsyncClient, run: str, sampler: str, seq_id: int) -> list[int]:
    stub = await http.post("/optim_step", json=step(run, seq_id))
    drawn = await http.post("/asample", json=sample(sampler, seq_id))
    poll = await http.post("/retrieve_future", json={"request_id": stub.json()["request_id"]})
    target = {"sampling_session_id": sampler}
    polls = await http.post("/retrieve_futures", json={"target": target, "prev_cursor": 0})
    beat = await http.post("/session_heartbeat", json={"session_id": run.split(":")[0]})
    return [answer.status_code for answer in (stub, drawn, poll, polls, beat)]


def test_only_the_first_call_of_each_kind_asks_the_database(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app, await client_of(app) as http:
            run, sampler = await new_run(http)
            statements: list[str] = []
            engine = app.state.service.db._engine.sync_engine
            event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
            assert await every_hot_call(http, run, sampler, 1) == [200, 200, 408, 200, 200]
            assert statements != []
            statements.clear()
            assert await every_hot_call(http, run, sampler, 2) == [200, 200, 408, 200, 200]
            assert statements == []

    asyncio.run(flow())


def test_what_one_organization_asked_is_not_remembered_for_another(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app, await client_of(app) as http:
            run, sampler = await new_run(http)
            await every_hot_call(http, run, sampler, 1)
            async with app.state.service.db.begin() as sql:
                _, key = await create(sql, b"pepper", KeyTerms(name="other"), "other")
            async with client(app, key) as other:
                assert (await other.post("/optim_step", json=step(run, 2))).status_code == 404
                assert (await other.post("/asample", json=sample(sampler, 2))).status_code == 404

    asyncio.run(flow())


def test_a_session_that_is_finished_at_one_process_is_finished_at_all(settings: Settings) -> None:
    async def flow() -> None:
        async with (
            running(settings) as here,
            running(settings) as there,
            await client_of(here) as http,
        ):
            run, sampler = await new_run(http)
            async with client(there, http.headers["X-API-Key"]) as distant:
                assert (await every_hot_call(distant, run, sampler, 1))[0] == 200
                await http.post(f"/sessions/{run.split(':')[0]}/finish", json={})
                answers = [
                    (await distant.post("/optim_step", json=step(run, seq_id))).status_code
                    for seq_id in range(2, 200)  # it is told in a few of these
                ]
                assert answers[-1] == 400
                assert (await distant.post("/asample", json=sample(sampler, 2))).status_code == 400

    asyncio.run(flow())


def test_a_session_is_finished_here_before_anybody_is_told(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(*_: object) -> None:
        pass

    async def flow() -> None:
        async with running(settings) as app, await client_of(app) as http:
            run, sampler = await new_run(http)
            await every_hot_call(http, run, sampler, 1)
            monkeypatch.setattr(app.state.service.bus, "finish", silent)
            session = run.split(":")[0]
            await http.post(f"/sessions/{session}/finish", json={})
            assert (await http.post("/optim_step", json=step(run, 2))).status_code == 400
            beat = await http.post("/session_heartbeat", json={"session_id": session})
            assert beat.status_code == 410

    asyncio.run(flow())


def test_direct_calls_are_ordinary_routes_too() -> None:
    from tinsmith_server import app

    routes = {
        f"/api/v1{route.path}": route.endpoint  # type: ignore[attr-defined]
        for room in app._ROOMS
        for route in room.router.routes
        if "POST" in route.methods  # type: ignore[attr-defined]
    }
    assert {path: routes[path] for path in DIRECT} == DIRECT
    assert DIRECT["/api/v1/optim_step"] is runs.optim_step


def test_direct_calls_refuse_and_fail_as_others_do(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("secret")

    async def flow() -> None:
        async with running(settings) as app, await client_of(app) as http:
            async with client(app, "tml-wrong") as nobody:
                assert (await nobody.post("/optim_step", json={})).status_code == 401
            assert (await http.post("/optim_step", content=b"{")).status_code == 422
            assert (await http.get("/optim_step")).status_code == 404
            monkeypatch.setattr(app.state.service.bus, "future", broken)
            http._transport.raise_app_exceptions = False  # type: ignore[attr-defined]
            answer = await http.post("/retrieve_future", json={"request_id": "a:1"})
            assert answer.status_code == 500
            assert "reference" in answer.json()["detail"]
            assert "secret" not in answer.text

    asyncio.run(flow())


def test_polls_that_came_together_do_not_leave_together() -> None:
    holds = [spread(25.0) for _ in range(1000)]
    assert min(holds) >= 17.5
    assert max(holds) <= 25.0
    seconds = [int(hold) for hold in holds]
    assert max(seconds.count(second) for second in set(seconds)) < 250  # of 1,000 over 7.5 s


def test_a_future_is_unknown_then_failed_and_at_last_expired(redis_url: str) -> None:
    async def flow() -> None:
        bus = Bus(redis_url)
        assert await bus.future("s:train:0:0") is None
        refusal = Result(data=b"no", failed=True)
        await bus.submit_failed("org", "s:train:0", 0, Kind.OPTIM_STEP, refusal)
        failed = await bus.future("s:train:0:0")
        assert failed is not None
        assert (failed.tenant, failed.kind, failed.result) == ("org", "optim_step", refusal)
        await bus.redis.delete(keys.result("s:train:0:0"))
        expired = await bus.future("s:train:0:0")
        assert expired is not None
        assert expired.result == failure("The result of this request has expired.", "server")
        await bus.close()

    asyncio.run(flow())
