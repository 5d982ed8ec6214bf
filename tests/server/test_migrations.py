"""The migrations build what the tables say, go back, and may be run by two processes at once."""

import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect
from tinsmith_server.accounts import tables as accounts_tables  # noqa: F401 - they join the metadata
from tinsmith_server.db import Table
from tinsmith_server.migrate import _scripts, sync_url


@pytest.fixture
def config(database_url: str) -> Config:
    made = Config()
    made.set_main_option("script_location", str(_scripts()))
    made.attributes["url"] = sync_url(database_url)
    return made


def differences(url: str) -> list[object]:
    """Between the database and the tables."""
    engine = create_engine(sync_url(url))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        found = compare_metadata(context, Table.metadata)
    engine.dispose()
    if engine.dialect.name == "sqlite":  # it gives unique constraints no name to compare them by
        found = [one for one in found if one[0] != "add_constraint"]
    return found


def tables(url: str) -> set[str]:
    engine = create_engine(sync_url(url))
    names = set(inspect(engine).get_table_names())
    engine.dispose()
    return names


def test_up_is_the_schema_and_down_is_nothing(config: Config, database_url: str) -> None:
    for _ in range(2):
        command.upgrade(config, "head")
        assert differences(database_url) == []
        command.downgrade(config, "base")
        assert tables(database_url) == {"alembic_version"}


def test_from_every_revision_it_goes_one_down_and_up_to_the_head(
    config: Config, database_url: str
) -> None:
    revisions = [one.revision for one in ScriptDirectory.from_config(config).walk_revisions()]
    for revision in reversed(revisions):
        command.upgrade(config, revision)
        command.downgrade(config, "-1")
        command.upgrade(config, "head")
        assert differences(database_url) == []
        command.downgrade(config, revision)


def test_two_processes_that_start_at_once_both_find_the_schema(
    tmp_path: Path, database_url: str
) -> None:
    """With a data folder each, as on two machines: only the database can hold one of them back."""
    script = (
        "import sys; from pathlib import Path; from tinsmith_server.migrate import migrate; "
        "from tinsmith_server.settings import Settings; "
        "migrate(Settings(data_dir=Path(sys.argv[1]), database_url=sys.argv[2], redis_url='', "
        "store_url='', key_pepper=b''))"
    )
    shared = database_url.startswith("sqlite")  # a file is of one machine
    folders = [tmp_path / ("one" if shared else name) for name in ("one", "two")]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    both = [
        subprocess.Popen([sys.executable, "-c", script, str(folder), database_url])
        for folder in folders
    ]
    assert [process.wait(60) for process in both] == [0, 0]
    assert differences(database_url) == []
