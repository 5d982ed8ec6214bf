"""Alembic's entry: one connection, one transaction, and PostgreSQL's advisory lock around it."""

from alembic import context
from sqlalchemy import create_engine, text
from tinsmith_server.db import Table

_LOCK = 7_461_001

engine = create_engine(context.config.attributes["url"])
with engine.begin() as connection:
    if engine.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    context.configure(
        connection=connection,
        target_metadata=Table.metadata,  # for its naming convention: constraints are named alike
        render_as_batch=engine.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
