"""`tinsmith keys`: a key on terms, and its successor."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import select
from tinsmith.protocol.errors import BadRequest
from tinsmith_server.auth import KeyRing
from tinsmith_server.bus import Bus
from tinsmith_server.cli.keys import time_span
from tinsmith_server.cli.main import app
from tinsmith_server.db import ApiKey, Database, now
from tinsmith_server.settings import Settings
from typer.testing import CliRunner


@pytest.fixture
def environment(settings: Settings) -> dict[str, str]:
    return {
        "TINSMITH_DATA_DIR": str(settings.data_dir),
        "TINSMITH_REDIS_URL": settings.redis_url,
        "TINSMITH_KEY_PEPPER": settings.key_pepper.decode(),
    }


def run(environment: dict[str, str], *words: str) -> str:
    done = CliRunner().invoke(app, ["keys", *words], env=environment, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


def rows(settings: Settings) -> list[ApiKey]:
    async def ask() -> list[ApiKey]:
        db = Database(settings.database_url)
        async with db.begin() as sql:
            found = (await sql.scalars(select(ApiKey).order_by(ApiKey.created_at))).all()
        await db.close()
        return list(found)

    return asyncio.run(ask())


def test_a_key_is_made_on_the_terms_that_were_given(
    settings: Settings, environment: dict[str, str]
) -> None:
    words = ["create", "eval bot", "--scopes", "read,sample", "--project", "evals"]
    text = run(environment, *words, "--expires", "90d", "--note", "nightly", "--quiet")
    [row] = rows(settings)
    assert (row.name, row.scopes, row.project_id, row.note) == (
        "eval bot", "read,sample", "evals", "nightly"
    )  # fmt: skip
    assert row.expires_at is not None
    assert abs(row.expires_at - now() - timedelta(days=90)) < timedelta(minutes=5)
    assert text.startswith(f"tml-{row.id}-")


def test_a_rotated_key_has_a_successor_on_its_terms(
    settings: Settings, environment: dict[str, str]
) -> None:
    old = run(environment, "create", "bot", "--scopes", "train", "--quiet")
    new = run(environment, "rotate", old.split("-")[1], "--grace", "15m", "--quiet")
    before, after = rows(settings)
    assert (after.name, after.scopes, after.expires_at) == ("bot", "train", None)
    assert before.expires_at is not None
    assert abs(before.expires_at - now() - timedelta(minutes=15)) < timedelta(minutes=5)

    async def both_work() -> list[str]:
        bus, db = Bus(settings.redis_url), Database(settings.database_url)
        ring = KeyRing(db, bus, settings.key_pepper)
        found = [(await ring.caller(text)).key_id for text in (old, new)]
        await bus.close()
        await db.close()
        return found

    assert asyncio.run(both_work()) == [before.id, after.id]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["create", "x", "--scopes", "everything"], "scopes"),
        (["create", "x", "--expires", "soon"], "--expires"),
        (["create", "x", "--expires", "0d"], "expires_at"),
        (["create", "x", "--project", "../etc"], "project"),
        (["create", "x", "--note", "n" * 501], "note"),
        (["create", " "], "name"),
        (["rotate", "nosuchkey"], "nosuchkey"),
        (["rotate", "nosuchkey", "--grace", "-1h"], "--grace"),
    ],
)
def test_terms_that_cannot_be_are_refused_by_name_and_make_nothing(
    settings: Settings, environment: dict[str, str], words: list[str], named: str
) -> None:
    done = CliRunner().invoke(app, ["keys", *words], env=environment)
    assert done.exit_code != 0
    assert named in str(done.exception)
    assert rows(settings) == []


@pytest.mark.parametrize("text", ["", "5", "5w", "-1d", "1e3d", "1d2h", "9999999d", "\u0661d"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="--grace"):
        time_span(text, "--grace")
