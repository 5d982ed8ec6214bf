"""Checkpoints: the table, one of them, and what can be done to one or to many."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Form
from fastapi.responses import RedirectResponse, Response
from sqlalchemy import select
from starlette.requests import Request
from tinsmith.protocol.errors import BadRequest, NotFound
from tinsmith.protocol.paths import TinkerPath

from tinsmith_server.accounts import audit
from tinsmith_server.accounts.caller import Caller, SignedIn
from tinsmith_server.checkpoints import repository
from tinsmith_server.checkpoints.ttl import expiry
from tinsmith_server.console.paging import After, turned, window
from tinsmith_server.console.security import Member, Viewer, console_router, redirect
from tinsmith_server.console.templating import page
from tinsmith_server.db import Checkpoint
from tinsmith_server.downloads.routes import archive_path
from tinsmith_server.service import Served

router: APIRouter = console_router()
_MOST_DELETED = 500
_DAY_SECONDS = 86400


@router.get("/checkpoints")
async def checkpoints_page(
    request: Request, member: Viewer, service: Served, after: After = "", q: str = ""
) -> Response:
    query = select(Checkpoint).where(
        Checkpoint.organization_id == member.organization_id, repository.listed()
    )
    if q:
        query = query.where(
            Checkpoint.run_id.contains(q, autoescape=True)
            | Checkpoint.name.contains(q, autoescape=True)
        )
    shown = window(query, Checkpoint.created_at, Checkpoint.id, after)
    async with service.db.begin() as sql:
        found: Sequence[Checkpoint] = (await sql.scalars(shown)).all()
    return page(
        request,
        "checkpoints.html",
        checkpoints=turned(request, after, found, lambda row: (row.created_at, row.id)),
        q=q,
        path_of=repository.path_of,
    )


@router.post("/checkpoints/delete")
async def delete_many(
    request: Request, member: Member, service: Served, path: Annotated[list[str], Form()]
) -> Response:
    """What is gone meanwhile, by another hand or by its time, is as deleted as the rest."""
    if len(path) > _MOST_DELETED:
        raise BadRequest(f"path: more than {_MOST_DELETED} at once; delete them in parts.")
    for one in [TinkerPath.parse(text) for text in path]:
        await service.checkpoints.delete(_caller(member), one, by_user=member.user_id)
    return redirect("/checkpoints")


@router.get("/checkpoints/{run_id}/{checkpoint_id:path}")
async def checkpoint_page(
    request: Request, run_id: str, checkpoint_id: str, member: Viewer, service: Served
) -> Response:
    path = _path(run_id, checkpoint_id)
    async with service.db.begin() as sql:
        row, run = await repository.owned_at(sql, _caller(member), path)
    try:
        names = await service.storage.names(repository.prefix(row))
    except NotFound:  # a sampler's weights are at hand before the store has them
        names = []
    return page(request, "checkpoint.html", row=row, run=run, where=path, names=sorted(names))


@router.post("/checkpoints/{run_id}/{checkpoint_id:path}/publish")
async def publish(
    run_id: str,
    checkpoint_id: str,
    member: Member,
    service: Served,
    public: Annotated[bool, Form()],
) -> Response:
    path = _path(run_id, checkpoint_id)
    async with service.db.begin() as sql:
        row, _ = await repository.owned_at(sql, _caller(member), path)
        row.public = public
        event = "checkpoint_published" if public else "checkpoint_unpublished"
        audit.record_member(sql, member, event, **_named(path))
    return _back(path)


@router.post("/checkpoints/{run_id}/{checkpoint_id:path}/ttl")
async def set_ttl(
    run_id: str, checkpoint_id: str, member: Member, service: Served, days: Annotated[str, Form()]
) -> Response:
    """From now; nothing keeps it for ever."""
    path = _path(run_id, checkpoint_id)
    if days and not days.isdigit():
        raise BadRequest("days: give a whole number of days, or nothing to keep it for ever.")
    seconds = int(days) * _DAY_SECONDS if days else None
    async with service.db.begin() as sql:
        row, _ = await repository.owned_at(sql, _caller(member), path)
        row.expires_at = expiry(seconds)
        audit.record_member(sql, member, "checkpoint_ttl_set", ttl_seconds=seconds, **_named(path))
    return _back(path)


@router.post("/checkpoints/{run_id}/{checkpoint_id:path}/delete")
async def delete(run_id: str, checkpoint_id: str, member: Member, service: Served) -> Response:
    path = _path(run_id, checkpoint_id)
    await service.checkpoints.delete(_caller(member), path, by_user=member.user_id)
    return redirect(f"/training_runs/{run_id}")


@router.post("/checkpoints/{run_id}/{checkpoint_id:path}/download")
async def download(
    request: Request, run_id: str, checkpoint_id: str, member: Member, service: Served
) -> Response:
    """To a link that ends by itself; that it was asked for stands in the audit log."""
    path = _path(run_id, checkpoint_id)
    async with service.db.begin() as sql:
        row, _ = await repository.owned_at(sql, _caller(member), path)
        audit.record_member(sql, member, "checkpoint_read", purpose="download", **_named(path))
    signed, _ = service.signer.sign(archive_path(row))
    return RedirectResponse(f"/api/v1{signed}", status_code=303)


def _path(run_id: str, checkpoint_id: str) -> TinkerPath:
    return TinkerPath.parse(f"tinker://{run_id}/{checkpoint_id}")


def _named(path: TinkerPath) -> dict[str, str]:
    return {"model_id": path.run_id, "tinker_path": str(path)}


def _back(path: TinkerPath) -> Response:
    return redirect(f"/checkpoints/{path.run_id}/{path.checkpoint_id}")


def _caller(member: SignedIn) -> Caller:
    """What the rooms' functions ask: whose organization it is. The audit log names the member."""
    return Caller("", member.organization_id)
