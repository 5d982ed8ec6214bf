"""Counting: batches that come twice, and hours that are not whole."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from redis import Redis
from sqlalchemy import select
from tinsmith.protocol import keys
from tinsmith_server.bus import Bus
from tinsmith_server.db import Database, Organization, Table, Usage
from tinsmith_server.usage.collector import UsageCollector
from tinsmith_server.usage.prices import Prices
from tinsmith_server.usage.storage import Shelf, Stored, gigabyte_hours

from tests.conftest import running_valkey

SHELF = Shelf("default", "tiny", free=False)
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture
def own_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Nobody else's tokens are counted there."""
    with running_valkey(tmp_path_factory.mktemp("usage")) as url:
        yield url


def test_a_batch_that_comes_twice_is_counted_once(database_url: str, own_valkey: str) -> None:
    redis = Redis.from_url(own_valkey)
    field = f"{int(NOON.timestamp())}|org|sess|training|a|b"

    async def flow() -> list[tuple[datetime, str, int]]:
        db = Database(database_url)
        async with db._engine.begin() as connection:
            await connection.run_sync(Table.metadata.create_all)
        async with db.begin() as sql:
            sql.add(Organization(id="org", name="org"))
        bus = Bus(own_valkey)
        collector = UsageCollector(db, bus)
        for tokens in (5, 7):
            redis.hincrby("usage", field, tokens)
            await collector.collect()
        # As if the process had died between the database and Redis: the same batch is still there.
        redis.hset("usage", field, 100)
        redis.rename("usage", keys.usage_batch("again"))
        for _ in range(2):
            redis.sadd(keys.USAGE_BATCHES, "again")
            await asyncio.gather(collector.collect(), UsageCollector(db, bus).collect())
            redis.hset(keys.usage_batch("again"), field, 100)
        redis.sadd(keys.USAGE_BATCHES, "again")
        await collector.collect()
        assert not redis.exists(keys.usage_batch("again"), keys.USAGE_BATCHES)
        async with db.begin() as sql:
            rows = (await sql.scalars(select(Usage))).all()
        await bus.close()
        await db.close()
        return [(row.hour, row.base_model, row.tokens) for row in rows]

    assert asyncio.run(flow()) == [(NOON, "a|b", 112)]
    redis.close()


def stored(gigabytes: float, begin_minutes: int, end_minutes: int) -> Stored:
    begin, end = (NOON + timedelta(minutes=m) for m in (begin_minutes, end_minutes))
    return Stored(SHELF, int(gigabytes * 10**9), begin, end)


def test_gigabyte_hours_of_parts_of_hours() -> None:
    # 2 GB from 12:30 to 15:15; 1 GB from 13:00 to 13:06; 4 GB that came and went at once.
    found = gigabyte_hours(
        [stored(2, 30, 195), stored(1, 60, 66), stored(4, 61, 61)], NOON, hours=5
    )
    assert {hour: quantity for (hour, _), quantity in found.items()} == pytest.approx(
        {0: 1.0, 1: 2.1, 2: 2.0, 3: 0.5}
    )


def test_prices_that_do_not_parse_are_named() -> None:
    assert Prices.parse("training=0.4, storage=1") == Prices(training=0.4, storage=1.0)
    for wrong in ("trainin=1", "training=-1", "training=1.2.3", "training"):
        with pytest.raises(ValueError, match=wrong.split("=")[0]):
            Prices.parse(wrong)
