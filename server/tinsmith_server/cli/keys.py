"""`tinsmith keys`."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.errors import BadRequest

from tinsmith_server.accounts import keys
from tinsmith_server.accounts.keys import KeyTerms
from tinsmith_server.accounts.scopes import parse_scopes
from tinsmith_server.bus import Bus
from tinsmith_server.db import Database, now
from tinsmith_server.migrate import migrate
from tinsmith_server.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Create, list, rotate and revoke API keys.")
T = TypeVar("T")
Quiet = Annotated[bool, typer.Option(help="Print the key alone, for scripts.")]
_MINUTES = {"d": 24 * 60, "h": 60, "m": 1}


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


def create_key(settings: Settings, terms: KeyTerms, organization: str) -> str:
    async def do(sql: AsyncSession) -> str:
        _, text = await keys.create(sql, settings.key_pepper, terms, organization)
        return text

    return in_transaction(settings, do)


def time_span(text: str, option: str) -> timedelta:
    """`90d`, `36h` or `15m`."""
    found = re.fullmatch(r"([0-9]{1,6})([dhm])", text)
    if found is None:
        raise BadRequest(f"{option}: {text!r} is not a time such as 90d, 36h or 15m.")
    return timedelta(minutes=int(found[1]) * _MINUTES[found[2]])


def _show(text: str, quiet: bool) -> None:
    if quiet:
        typer.echo(text)
        return
    typer.echo(f"export TINKER_API_KEY={text}")
    Console(stderr=True).print("[dim]Keep it: it is stored as a hash and cannot be shown again.[/]")


def _tell_every_process(settings: Settings, key_id: str) -> None:
    """What they remember of the key is out of date."""

    async def tell() -> None:
        bus = Bus(settings.redis_url)
        await bus.revoke(key_id)
        await bus.close()

    asyncio.run(tell())


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    organization: Annotated[
        str, typer.Option(help="Its tenant: keys of one organization see the same runs.")
    ] = "default",
    scopes: Annotated[
        str, typer.Option(help="all, or some of read, sample, train, manage, admin: read,sample")
    ] = "all",
    project: Annotated[
        str | None, typer.Option(help="The one project that it is held to; without, all of them.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="After how long it ends: 90d, 36h, 15m; without, never.")
    ] = None,
    note: Annotated[str, typer.Option(help="Shown beside it in the console.")] = "",
    quiet: Quiet = False,
) -> None:
    """Make a key. It is shown once and never again."""
    terms = KeyTerms(
        name=name,
        scopes=parse_scopes(scopes.split(",")),
        project_id=project,
        expires_at=now() + time_span(expires, "--expires") if expires else None,
        note=note,
    )
    _show(create_key(Settings.from_environment(), terms, organization), quiet)


@app.command()
def rotate(
    key_id: Annotated[str, typer.Argument(help="From `tinsmith keys list`.")],
    grace: Annotated[
        str, typer.Option(help="How long the old key goes on: 24h, 15m; 0m ends it now.")
    ] = "24h",
    quiet: Quiet = False,
) -> None:
    """Make a new key on the same terms; the old one ends after the grace."""
    settings, lasts = Settings.from_environment(), time_span(grace, "--grace")

    async def do(sql: AsyncSession) -> str:
        row = await keys.one(sql, key_id)
        _, text = await keys.rotate(sql, settings.key_pepper, row, lasts, None)
        return text

    text = in_transaction(settings, do)
    _tell_every_process(settings, key_id)
    _show(text, quiet)


@app.command("list")
def list_keys() -> None:
    """Show every key: its id, organization, age, last use. Never its secret."""
    table = Table("id", "name", "organization", "created", "last used", "state")
    for key, organization in in_transaction(Settings.from_environment(), keys.listed):
        used = f"{key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "never"
        ended = key.expires_at is not None and key.expires_at <= now()
        state = "revoked" if key.revoked_at else "expired" if ended else "live"
        table.add_row(key.id, key.name, organization, f"{key.created_at:%Y-%m-%d}", used, state)
    Console().print(table)


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(help="From `tinsmith keys list`.")]) -> None:
    """End a key on every API process within a second."""
    settings = Settings.from_environment()
    in_transaction(settings, lambda sql: keys.revoke(sql, key_id))
    _tell_every_process(settings, key_id)
    typer.echo(f"Key {key_id} is revoked.")
