"""What the background process throws away, and what it must not."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from redis import Redis
from rq import Queue, SimpleWorker
from rq.serializers import JSONSerializer
from sqlalchemy import select
from tinsmith.protocol import keys
from tinsmith.protocol.store_layout import (
    checkpoint_prefix,
    export_prefix,
    snapshot_prefix,
    upload_prefix,
)
from tinsmith_server.accounts.caller import Caller
from tinsmith_server.background.jobs import QUEUE, BackgroundJobs
from tinsmith_server.background.tidying import Tidied, Tidying
from tinsmith_server.bus import Bus
from tinsmith_server.db import (
    Checkpoint,
    Database,
    Organization,
    SamplingSession,
    Session,
    Table,
    TrainingRun,
    now,
)
from tinsmith_server.storage import Storage
from tinsmith_worker.store import Store

from tests.conftest import running_valkey

TWO_DAYS = 2 * 86400


@pytest.fixture
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_valkey(tmp_path_factory.mktemp("tidying")) as url:
        yield url


class Shop:
    """An organization with an open session and one that has ended, a run in each."""

    def __init__(self, database_url: str, redis_url: str, folder: Path) -> None:
        self.db, self.bus = Database(database_url), Bus(redis_url)
        self.folder, self.storage, self.store = folder, Storage(str(folder)), Store(str(folder))

    async def open(self) -> None:
        async with self.db._engine.begin() as connection:
            await connection.run_sync(Table.metadata.create_all)
        async with self.db.begin() as sql:
            sql.add(Organization(id="org", name="org"))
            await sql.flush()
            for name in ("open", "ended"):
                ended = now() if name == "ended" else None
                about = {"organization_id": "org", "project_id": "p", "sdk_version": "0"}
                sql.add(Session(id=name, finished_at=ended, **about))
                await sql.flush()
                sql.add(
                    TrainingRun(
                        id=f"{name}:train:0",
                        session_id=name,
                        organization_id="org",
                        base_model="tiny",
                        lora_rank=2,
                        train_attn=True,
                        train_mlp=True,
                        train_unembed=True,
                    )
                )

    async def checkpoint(self, checkpoint_id: str, session: str, **more: object) -> None:
        row = Checkpoint(
            id=checkpoint_id,
            run_id=f"{session}:train:0",
            organization_id="org",
            request_id=f"request-{checkpoint_id}",
            kind="sampler_weights",
            ready=True,
            **more,
        )
        async with self.db.begin() as sql:
            sql.add(row)
        self.lay(checkpoint_prefix(checkpoint_id))

    async def sampler(self, checkpoint: str, session: str) -> None:
        about = {"organization_id": "org", "base_model": "tiny", "checkpoint_id": checkpoint}
        async with self.db.begin() as sql:
            sql.add(SamplingSession(id=f"{session}:sample:0", session_id=session, **about))

    def lay(self, prefix: str, age_seconds: float = 0) -> None:
        self.store.write_folder(prefix, {"a": b"x"})
        then = time.time() - age_seconds
        for file in (self.folder / prefix).iterdir():
            os.utime(file, (then, then))

    def lies(self, prefix: str) -> bool:
        return any((self.folder / prefix).glob("*"))

    async def close(self) -> None:
        await self.bus.close()
        await self.db.close()


@pytest.fixture
def in_shop(
    database_url: str, redis_url: str, tmp_path: Path
) -> Callable[[Callable[[Shop], Awaitable[None]]], None]:
    def run(test: Callable[[Shop], Awaitable[None]]) -> None:
        async def flow() -> None:
            shop = Shop(database_url, redis_url, tmp_path / "store")
            await shop.open()
            try:
                await test(shop)
            finally:
                await shop.close()

        asyncio.run(flow())

    return run


InShop = Callable[[Callable[[Shop], Awaitable[None]]], None]


def test_checkpoints_go_when_nothing_needs_them(in_shop: InShop) -> None:
    async def flow(shop: Shop) -> None:
        await shop.checkpoint("named", "ended", name="n")
        await shop.checkpoint("unnamed-open", "open")
        await shop.checkpoint("unnamed-ended", "ended")
        await shop.checkpoint("expired", "open", name="e", expires_at=now() - timedelta(seconds=1))
        await shop.checkpoint("stood-on", "ended", name="s", deleted_at=now())
        await shop.sampler("stood-on", "open")
        await shop.checkpoint("left", "open", name="l", deleted_at=now())
        shop.lay(checkpoint_prefix("on-its-way"))
        shop.lay(checkpoint_prefix("orphan"), age_seconds=TWO_DAYS)
        tidied = await Tidying(shop.db, shop.bus, shop.storage).run()
        assert tidied == Tidied(expired=1, unnamed=1, orphaned=3, snapshots=0)
        kept = ("named", "unnamed-open", "stood-on", "on-its-way")
        gone = ("unnamed-ended", "expired", "left", "orphan")
        assert [shop.lies(checkpoint_prefix(name)) for name in kept] == [True] * 4
        assert [shop.lies(checkpoint_prefix(name)) for name in gone] == [False] * 4
        again = await Tidying(shop.db, shop.bus, shop.storage).run()
        assert again == Tidied(expired=0, unnamed=0, orphaned=0, snapshots=0)
        async with shop.db.begin() as sql:
            marked = select(Checkpoint.id).where(Checkpoint.deleted_at.is_not(None))
            assert set(await sql.scalars(marked)) == {
                "unnamed-ended",
                "expired",
                "stood-on",
                "left",
            }

    in_shop(flow)


def test_a_snapshot_stays_while_its_run_may_begin_from_it(in_shop: InShop) -> None:
    async def flow(shop: Shop) -> None:
        current, other = (
            snapshot_prefix("open:train:0", 1, 9),
            snapshot_prefix("open:train:0", 1, 5),
        )
        ended, young = (
            snapshot_prefix("ended:train:0", 1, 9),
            snapshot_prefix("ended:train:0", 2, 9),
        )
        for prefix in (current, other, ended):
            shop.lay(prefix, age_seconds=TWO_DAYS)
        shop.lay(young)
        await shop.bus.redis.hset(keys.run("open:train:0"), "snapshot", current)
        tidied = await Tidying(shop.db, shop.bus, shop.storage).run()
        assert tidied.snapshots == 2
        lies = [shop.lies(prefix) for prefix in (current, other, ended, young)]
        assert lies == [True, False, False, True]

    in_shop(flow)


def test_of_a_run_that_redis_has_forgotten_the_newest_snapshot_stays(in_shop: InShop) -> None:
    async def flow(shop: Shop) -> None:
        newest, older = snapshot_prefix("open:train:0", 2, 9), snapshot_prefix("open:train:0", 1, 5)
        shop.lay(newest, age_seconds=TWO_DAYS)
        shop.lay(older, age_seconds=2 * TWO_DAYS)
        await Tidying(shop.db, shop.bus, shop.storage).run()
        assert (shop.lies(newest), shop.lies(older)) == (True, False)

    in_shop(flow)


def test_what_a_job_left_in_the_store_goes_after_a_day(in_shop: InShop) -> None:
    async def flow(shop: Shop) -> None:
        for prefix in (export_prefix("old"), upload_prefix("old")):
            shop.lay(prefix, age_seconds=TWO_DAYS)
        shop.lay(export_prefix("fresh"))
        tidied = await Tidying(shop.db, shop.bus, shop.storage).run()
        assert tidied.exchanged == 2
        assert set(await shop.storage.folders("exports")) == {export_prefix("fresh")}
        assert not await shop.storage.folders("uploads")

    in_shop(flow)


def test_the_chore_is_queued_once_and_works_through_rq(
    in_shop: InShop,
    database_url: str,
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_shop(lambda shop: shop.checkpoint("unnamed-ended", "ended"))
    redis, jobs = Redis.from_url(redis_url), BackgroundJobs(redis_url)
    queue = Queue(QUEUE, connection=redis, serializer=JSONSerializer)

    def minutes_pass() -> None:
        for _ in range(3):
            redis.delete(keys.TIDYING)
            jobs._tidy_if_due()

    minutes_pass()
    assert queue.count == 1
    monkeypatch.setenv("TINSMITH_DATABASE_URL", database_url)
    monkeypatch.setenv("TINSMITH_REDIS_URL", redis_url)
    monkeypatch.setenv("TINSMITH_DATA_DIR", str(tmp_path))
    SimpleWorker([queue], connection=redis, serializer=JSONSerializer).work(burst=True)
    told = jobs._look(Caller("", ""), "tidying")
    assert told.result == {
        "expired": 0,
        "unnamed": 1,
        "orphaned": 1,
        "snapshots": 0,
        "exchanged": 0,
    }
    assert list((tmp_path / "store" / checkpoint_prefix("unnamed-ended")).glob("*")) == []
    minutes_pass()
    assert queue.count == 1  # the next time
    asyncio.run(jobs.close())
    redis.close()
