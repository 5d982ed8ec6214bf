"""Brings the database to the newest schema, under a lock: two processes may start at once."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from alembic import command
from alembic.config import Config

from tinsmith_server.settings import Settings

_HERE = Path(__file__).parent


def migrate(settings: Settings) -> None:
    config = Config()
    config.set_main_option("script_location", str(_scripts()))
    config.attributes["url"] = sync_url(settings.database_url)
    with _lock(settings):
        command.upgrade(config, "head")


def sync_url(url: str) -> str:
    """psycopg speaks both; SQLite has a driver for each."""
    return url.replace("sqlite+aiosqlite:", "sqlite:")


def _scripts() -> Path:
    """Beside the package in an installed wheel, at the top of a checkout."""
    installed = _HERE / "_migrations"
    return installed if installed.is_dir() else _HERE.parents[1] / "migrations"


@contextlib.contextmanager
def _lock(settings: Settings) -> Iterator[None]:
    """Processes of one machine; those of several meet in PostgreSQL's own lock (migrations/env.py)."""
    with (settings.data_dir / "migrate.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
