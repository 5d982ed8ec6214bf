"""API keys: made, shown once, rotated, revoked."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Form
from fastapi.responses import Response
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request
from tinsmith.protocol.errors import BadRequest

from tinsmith_server.accounts import key_desk
from tinsmith_server.accounts.caller import SignedIn
from tinsmith_server.accounts.keys import KeyTerms
from tinsmith_server.accounts.projects import projects
from tinsmith_server.accounts.scopes import Scope, parse_scopes
from tinsmith_server.console.security import Member, console_router, redirect
from tinsmith_server.console.templating import page
from tinsmith_server.db import Session, Usage, now
from tinsmith_server.service import Served, Service

router: APIRouter = console_router()
Text = Annotated[str, Form()]


@router.get("/keys")
async def keys_page(
    request: Request, member: Member, service: Served, new_key: str = "", key_name: str = ""
) -> Response:
    """`new_key` and `key_name` are how the SDK links here: the dialog open, the name filled in."""
    return await _keys(request, member, service, is_open=new_key == "true", key_name=key_name[:200])


async def _keys(
    request: Request,
    member: SignedIn,
    service: Service,
    *,
    is_open: bool,
    key_name: str,
    error: str = "",
) -> Response:
    found = await key_desk.list_keys(service, member)
    async with service.db.begin() as sql:
        names = [one.id for one in await projects(sql, member.organization_id)]
        used = await _tokens(sql, member.organization_id, [one.id for one in found])
    return page(
        request,
        "keys.html",
        400 if error else 200,
        keys=found,
        used=used,
        projects=names,
        scopes=list(Scope),
        is_open=is_open,
        key_name=key_name,
        error=error,
        now=now(),
    )


@router.post("/keys")
async def create(
    request: Request,
    member: Member,
    service: Served,
    name: Text,
    scopes: Annotated[list[str] | None, Form()] = None,
    project: Text = "",
    days: Text = "",
    note: Text = "",
) -> Response:
    try:
        terms = KeyTerms(
            name=name,
            scopes=parse_scopes(scopes or ["all"]),
            project_id=project or None,
            expires_at=now() + timedelta(days=_days(days)) if days else None,
            note=note,
        )
        row, text = await key_desk.create_key(service, member, terms)
    except BadRequest as error:
        return await _keys(
            request, member, service, is_open=True, key_name=name[:200], error=error.message
        )
    return page(request, "new_key.html", key=row, text=text)


@router.get("/keys/{key_id}")
async def key_page(request: Request, key_id: str, member: Member, service: Served) -> Response:
    row = await key_desk.one_key(service, member, key_id)
    async with service.db.begin() as sql:
        used = (
            select(Usage.kind, func.sum(Usage.tokens))
            .join(Session, Session.id == Usage.session_id)
            .where(Usage.organization_id == member.organization_id, Session.key_id == row.id)
            .group_by(Usage.kind)
        )
        tokens = (await sql.execute(used)).all()
    return page(request, "key.html", key=row, used=tokens, now=now())


@router.post("/keys/{key_id}/rotate")
async def rotate(
    request: Request, key_id: str, member: Member, service: Served, hours: Text = "24"
) -> Response:
    if not hours.isdigit() or len(hours) > 4:
        raise BadRequest("hours: give a whole number of hours.")
    grace = timedelta(hours=int(hours))
    row, text = await key_desk.rotate_key(service, member, key_id, grace)
    return page(request, "new_key.html", key=row, text=text)


@router.post("/keys/{key_id}/revoke")
async def revoke(key_id: str, member: Member, service: Served) -> Response:
    await key_desk.revoke_key(service, member, key_id)
    return redirect("/keys")


def _days(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 3650:
        raise BadRequest("days: give 1 to 3650 days, or nothing for a key without an end.")
    return int(text)


async def _tokens(
    sql: AsyncSession, organization_id: str, key_ids: list[str]
) -> dict[str | None, int]:
    query = (
        select(Session.key_id, func.sum(Usage.tokens))
        .join(Usage, Usage.session_id == Session.id)
        .where(Usage.organization_id == organization_id, Session.key_id.in_(key_ids))
        .group_by(Session.key_id)
    )
    return {row[0]: int(row[1]) for row in (await sql.execute(query)).all()}
