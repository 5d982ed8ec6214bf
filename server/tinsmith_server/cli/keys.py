"""`tinsmith keys`."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncSession

from tinsmith_server.accounts import keys
from tinsmith_server.bus import Bus
from tinsmith_server.db import Database
from tinsmith_server.migrate import migrate
from tinsmith_server.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Create, list and revoke API keys.")
T = TypeVar("T")


def in_transaction(settings: Settings, do: Callable[[AsyncSession], Awaitable[T]]) -> T:
    """Run against the newest schema, in one transaction."""
    migrate(settings)

    async def run() -> T:
        db = Database(settings.database_url)
        try:
            async with db.begin() as sql:
                return await do(sql)
        finally:
            await db.close()

    return asyncio.run(run())


def create_key(settings: Settings, name: str, organization: str) -> str:
    async def do(sql: AsyncSession) -> str:
        _, text = await keys.create(sql, settings.key_pepper, name, organization)
        return text

    return in_transaction(settings, do)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    organization: Annotated[
        str, typer.Option(help="Its tenant: keys of one organization see the same runs.")
    ] = "default",
    quiet: Annotated[bool, typer.Option(help="Print the key alone, for scripts.")] = False,
) -> None:
    """Make a key. It is shown once and never again."""
    text = create_key(Settings.from_environment(), name, organization)
    if quiet:
        typer.echo(text)
        return
    typer.echo(f"export TINKER_API_KEY={text}")
    Console(stderr=True).print("[dim]Keep it: it is stored as a hash and cannot be shown again.[/]")


@app.command("list")
def list_keys() -> None:
    """Show every key: its id, organization, age, last use. Never its secret."""
    table = Table("id", "name", "organization", "created", "last used", "state")
    for key, organization in in_transaction(Settings.from_environment(), keys.listed):
        used = f"{key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "never"
        state = "revoked" if key.revoked_at else "live"
        table.add_row(key.id, key.name, organization, f"{key.created_at:%Y-%m-%d}", used, state)
    Console().print(table)


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(help="From `tinsmith keys list`.")]) -> None:
    """End a key on every API process within a second."""
    settings = Settings.from_environment()
    in_transaction(settings, lambda sql: keys.revoke(sql, key_id))

    async def tell() -> None:
        bus = Bus(settings.redis_url)
        await bus.revoke(key_id)
        await bus.close()

    asyncio.run(tell())
    typer.echo(f"Key {key_id} is revoked.")
