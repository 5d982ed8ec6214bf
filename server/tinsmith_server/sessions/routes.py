"""A client's lifetime: it begins, beats and ends."""

import json
import secrets
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from tinsmith.protocol.bodies import CreateSession, FinishSession, SessionCreated, SessionRef
from tinsmith.protocol.errors import BadRequest, Gone

from tinsmith_server.auth import Caller, User
from tinsmith_server.db import Session, now
from tinsmith_server.reach import check_project
from tinsmith_server.service import Served
from tinsmith_server.sessions import repository
from tinsmith_server.wire import answer, read

router = APIRouter()
_MAX_DISPLAY_NAME = 200


@router.post("/create_session")
async def create_session(request: Request, user: User, service: Served) -> Response:
    body = await read(request, CreateSession)
    if len(body.display_name or "") > _MAX_DISPLAY_NAME:
        raise BadRequest(f"display_name: longer than {_MAX_DISPLAY_NAME} characters.")
    row = Session(
        id=f"sess-{secrets.token_hex(10)}",
        organization_id=user.organization_id,
        project_id=_project(user, body.project_id),
        display_name=body.display_name,
        sdk_version=body.sdk_version[:40],
        user_metadata=metadata(body.user_metadata),
        tags=body.tags,
        key_id=user.key_id,
    )
    async with service.db.begin() as sql:
        sql.add(row)
    await service.bus.beat(row.id)
    return answer(SessionCreated(session_id=row.id))


def _project(user: Caller, asked: str | None) -> str:
    named = asked or user.project_id or repository.DEFAULT_PROJECT
    return check_project(user, repository.project_name(named))


@router.post("/session_heartbeat")
async def session_heartbeat(request: Request, user: User, service: Served) -> Response:
    body = await read(request, SessionRef)
    row = await service.owners.session(user, body.session_id)
    if row.finished_at is not None:
        raise Gone(f"session_id: session {row.id} is finished.")
    await service.bus.beat(row.id)
    return answer({"type": "session_heartbeat"})


@router.post("/sessions/{session_id}/finish")
async def finish(session_id: str, request: Request, user: User, service: Served) -> Response:
    """The first reason wins."""
    body = await read(request, FinishSession)
    async with service.db.begin() as sql:
        row = await repository.owned_by(sql, user, session_id)
        if row.finished_at is None:
            row.finished_at, row.finish_reason = now(), body.reason.type
            row.finish_detail = body.detail and body.detail[:500]
    await service.owners.finished(session_id)
    await service.liveness.end(session_id)
    return answer({})


def metadata(given: dict[str, Any] | None) -> dict[str, str] | None:
    """Any JSON may come in; only text may go out."""
    if given is None:
        return None
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in given.items()}
