"""A run's steps: from DONE to the database, each once, and thinned out when there are many."""

import asyncio
from collections.abc import Iterator

import pytest
from redis import Redis
from sqlalchemy import select
from tinsmith.protocol import keys
from tinsmith.protocol.jobs import Content, Job, Kind, ModelCard, Result, failure
from tinsmith_server.bus import Bus
from tinsmith_server.curves import collector
from tinsmith_server.curves.collector import CurveCollector, stride_of
from tinsmith_server.db import Database, RunAdoption, RunStep, Table
from tinsmith_worker.queue import Queue

from tests.conftest import running_valkey

RUN = "sess:train:0"
CARD = ModelCard(name="tiny", family="llama", vocab_size=8, max_context_length=8, max_lora_rank=8)
BACKWARD, STEP = Kind.FORWARD_BACKWARD, Kind.OPTIM_STEP


@pytest.fixture
def own_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Nobody else's steps are taken there."""
    with running_valkey(tmp_path_factory.mktemp("curves")) as url:
        yield url


async def opened(database_url: str) -> Database:
    db = Database(database_url)
    async with db._engine.begin() as connection:
        await connection.run_sync(Table.metadata.create_all)
    return db


def job(seq: int, kind: Kind, tokens: int = 0) -> Job:
    return Job(
        request_id=f"{RUN}:{seq}", run_id=RUN, seq_id=seq, kind=kind, body=b"", num_tokens=tokens
    )


def worker(url: str, name: str) -> Queue:
    queue = Queue(url, name)
    queue.redis.set(keys.lease(name), b"1", px=60_000)
    queue.announce([CARD])
    return queue


def test_a_step_is_the_sum_of_its_passes_and_is_there_once(
    database_url: str, own_valkey: str
) -> None:
    # Two chunks with losses 6 and 2 of weights 3 and 1: 8 / 4 a token. Their drifts, 0.1 and 0.5:
    # (0.1 * 3 + 0.5 * 1) / 4 = 0.2. The failed pass and the one without a gradient are no part of it.
    ops = [
        (job(0, Kind.CREATE_MODEL), Result(data=b"")),
        (job(1, BACKWARD, 5), Result(data=b"", figures="6 3 0.1")),
        (job(2, BACKWARD, 7), Result(data=b"", figures="2 1 0.5")),
        (job(3, BACKWARD, 9), failure("bad")),
        (job(4, Kind.FORWARD, 11), Result(data=b"", content=Content.FORWARD_BACKWARD)),
        (job(5, STEP), Result(data=b"", figures="1.5 0.001")),
        (job(6, BACKWARD, 3), Result(data=b"", figures="4 0")),
        (job(7, STEP), Result(data=b"", figures="2.5 0.002")),
        (job(8, STEP), Result(data=b"", figures="0 0.003")),
    ]

    async def flow() -> tuple[list[RunStep], list[RunAdoption]]:
        db, bus = await opened(database_url), Bus(own_valkey)
        first = worker(own_valkey, "a")
        for one, _ in ops:
            await bus.submit("org", "tiny", one)
        first.take({RUN: (0, -1)}, 1000)
        for one, result in ops[:8]:
            first.done(one, 1, result)
            first.done(one, 1, result)  # a repeat is not counted
        first.redis.delete(keys.lease("a"))
        heir = worker(own_valkey, "b")
        assert heir.adopt_orphans(["tiny"]) == {RUN}
        heir.done(*[ops[8][0], 2, ops[8][1]])
        await CurveCollector(db, bus).collect()
        again = (await bus.redis.xrange(keys.STEPS)) == []
        assert again
        await bus.redis.xadd(
            keys.STEPS,
            {"run": RUN, "step": 1, "loss": 0, "weight": 1, "drift": "", "tokens": 0}
            | {"grad_norm": 0, "learning_rate": 0},
        )  # as if the process had died before it cleared the stream
        await asyncio.gather(CurveCollector(db, bus).collect(), CurveCollector(db, bus).collect())
        async with db.begin() as sql:
            steps = (await sql.scalars(select(RunStep).order_by(RunStep.step))).all()
            adoptions = (await sql.scalars(select(RunAdoption))).all()
        await bus.close()
        await db.close()
        return list(steps), list(adoptions)

    steps, adoptions = asyncio.run(flow())
    found = [(s.step, s.loss, s.drift, s.tokens, s.grad_norm, s.learning_rate) for s in steps]
    assert found == [
        (1, 2.0, pytest.approx(0.2), 12, 1.5, 0.001),
        (2, 4.0, None, 3, 2.5, 0.002),
        (3, None, None, 0, 0.0, 0.003),
    ]
    assert [(one.run_id, one.epoch, one.worker) for one in adoptions] == [(RUN, 2, "b")]


def test_a_long_run_keeps_a_bounded_number_of_steps(
    database_url: str, own_valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "MOST_STEPS", 8)
    redis = Redis.from_url(own_valkey)

    async def flow() -> dict[int, list[int]]:
        db, bus = await opened(database_url), Bus(own_valkey)
        kept = {}
        for step in range(1, 70):
            redis.xadd(
                keys.STEPS,
                {"run": RUN, "step": step, "loss": 1, "weight": 1, "drift": "", "tokens": 1}
                | {"grad_norm": 1, "learning_rate": 1},
            )
            await CurveCollector(db, bus).collect()
            async with db.begin() as sql:
                kept[step] = list(await sql.scalars(select(RunStep.step).order_by(RunStep.step)))
        await bus.close()
        await db.close()
        return kept

    kept = asyncio.run(flow())
    assert kept[8] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert kept[9] == [2, 4, 6, 8]
    assert kept[16] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert kept[69] == [16, 32, 48, 64]
    assert max(map(len, kept.values())) == 8
    redis.close()


@pytest.mark.parametrize(
    ("last", "stride"), [(1, 1), (4096, 1), (4097, 2), (8192, 2), (8193, 4), (16385, 8)]
)
def test_the_stride_of_a_long_run(last: int, stride: int) -> None:
    assert stride_of(last) == stride
