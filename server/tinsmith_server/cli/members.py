"""`tinsmith members`: for an operator at the machine itself, so that nobody is ever locked out."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.errors import NotFound

from tinsmith_server.accounts import audit, members
from tinsmith_server.accounts.organizations import organization_named
from tinsmith_server.accounts.roles import Role
from tinsmith_server.accounts.tables import Member, User
from tinsmith_server.cli.keys import in_transaction
from tinsmith_server.db import Organization
from tinsmith_server.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Invite people to the console and list them.")


def setup_link(settings: Settings, url: str) -> str | None:
    """Where the first owner is made; None once somebody is there."""
    if in_transaction(settings, members.is_set_up):
        return None
    return f"{url}/setup?token={members.setup_secret(settings.key_pepper)}"


def console_url(settings: Settings) -> str:
    if settings.public_url:
        return settings.public_url.rstrip("/")
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    return f"{'https' if settings.tls_cert else 'http'}://{host}:{settings.port}"


@app.command()
def invite(
    organization: Annotated[str, typer.Option(help="Made if it is not there.")] = "default",
    role: Annotated[str, typer.Option(help="viewer, member, admin or owner.")] = "member",
    email: Annotated[str | None, typer.Option(help="Only this address may use the link.")] = None,
) -> None:
    """Print a link that one person joins by, within a week."""
    settings, wanted = Settings.from_environment(), Role.parse(role)

    async def do(sql: AsyncSession) -> str:
        owner = await organization_named(sql, organization)
        row, secret = members.invitation_to(owner.id, wanted, email, None)
        sql.add(row)
        audit.record(sql, owner.id, None, "organization_member_invited", role=role, email=row.email)
        return secret

    secret = in_transaction(settings, do)
    typer.echo(f"{console_url(settings)}/invitation?token={secret}")


@app.command("list")
def list_members() -> None:
    """Show everybody: address, organization, role."""

    async def rows(sql: AsyncSession) -> list[tuple[str, str, str, bool]]:
        query = (
            select(User.email, Organization.name, Member.role, User.operator)
            .join(Member, Member.user_id == User.id)
            .join(Organization, Organization.id == Member.organization_id)
            .order_by(Organization.name, User.email)
        )
        return [(row[0], row[1], row[2], row[3]) for row in (await sql.execute(query)).all()]

    table = Table("e-mail", "organization", "role", "operator")
    for email, organization, role, operator in in_transaction(Settings.from_environment(), rows):
        table.add_row(email, organization, role, "yes" if operator else "")
    Console().print(table)


@app.command()
def operator(
    email: Annotated[str, typer.Argument(help="Of an account that is there.")],
    off: Annotated[bool, typer.Option("--off", help="Take it away again.")] = False,
) -> None:
    """Let somebody see and change what belongs to the whole service: workers, queues, models."""

    async def do(sql: AsyncSession) -> None:
        user = await members.user_of(sql, email)
        if user is None:
            raise NotFound(f"There is no account {email!r}; `tinsmith members list` shows them.")
        user.operator = not off

    in_transaction(Settings.from_environment(), do)
    typer.echo(f"{email} is {'no' if off else 'an'} operator{' any more' if off else ''}.")
