"""The migrations build what the tables say, and go back."""

from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect
from tinsmith_server.accounts import tables as tables  # what it declares joins the metadata
from tinsmith_server.db import Table
from tinsmith_server.migrate import _scripts


def test_up_is_the_schema_and_down_is_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'tinsmith.db'}"
    config = Config()
    config.set_main_option("script_location", str(_scripts()))
    config.attributes["url"] = url
    engine = create_engine(url)
    for _ in range(2):
        command.upgrade(config, "head")
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            found = compare_metadata(context, Table.metadata)
            # SQLite gives unique constraints no name to compare them by.
            assert [one for one in found if one[0] != "add_constraint"] == []
        command.downgrade(config, "base")
        assert set(inspect(engine).get_table_names()) == {"alembic_version"}
    engine.dispose()
