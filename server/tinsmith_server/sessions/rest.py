"""Sessions over REST: list, look up, search, move to a project."""

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy import select
from tinsmith.protocol.session_bodies import (
    AssignProject,
    FoundSessions,
    SearchCursor,
    SearchSessions,
    SessionInfo,
    Sessions,
)

from tinsmith_server.accounts import audit
from tinsmith_server.auth import User
from tinsmith_server.db import SamplingSession, TrainingRun
from tinsmith_server.paging import AccessScope, Limit, Offset
from tinsmith_server.reach import check_project
from tinsmith_server.service import Served
from tinsmith_server.sessions import repository, search
from tinsmith_server.sessions.liveness import beating
from tinsmith_server.wire import answer, read

router = APIRouter()


@router.get("/sessions")
async def sessions(
    user: User,
    service: Served,
    limit: Limit = 20,
    offset: Offset = 0,
    access_scope: AccessScope = "owned",
) -> Response:
    """Newest first. An organization sees its own in both scopes."""
    async with service.db.begin() as sql:
        found = await repository.page(sql, user, limit, offset)
    return answer(Sessions(sessions=list(found)))


@router.get("/sessions/{session_id}")
async def session(
    session_id: str, user: User, service: Served, access_scope: AccessScope = "owned"
) -> Response:
    async with service.db.begin() as sql:
        row = await repository.owned_by(sql, user, session_id)
        runs = select(TrainingRun.id).where(TrainingRun.session_id == row.id)
        samplers = select(SamplingSession.id).where(SamplingSession.session_id == row.id)
        info = SessionInfo(
            training_run_ids=list(await sql.scalars(runs.order_by(TrainingRun.created_at))),
            sampler_ids=list(await sql.scalars(samplers.order_by(SamplingSession.created_at))),
            user_metadata=row.user_metadata,
            display_name=row.display_name,
        )
    return answer(info)


@router.put("/sessions/{session_id}/project")
async def assign_project(
    session_id: str, request: Request, user: User, service: Served
) -> Response:
    """Finished or not: what it made and used counts for the project from now on."""
    body = await read(request, AssignProject)
    project_id = check_project(user, repository.project_name(body.project_id))
    async with service.db.begin() as sql:
        row = await repository.owned_by(sql, user, session_id)
        details = {"session_id": row.id, "project_id": project_id, "was": row.project_id}
        row.project_id = project_id
        audit.record(sql, user.organization_id, user.key_id, "project_session_assigned", **details)
    return answer({})


@router.post("/sessions/search")
async def search_sessions(request: Request, user: User, service: Served) -> Response:
    asked = await read(request, SearchSessions)
    async with service.db.begin() as sql:
        rows = await search.page(sql, user, asked)
        more, rows = len(rows) > asked.limit, rows[: asked.limit]
        saved = await search.checkpoints_of(sql, [row.id for row in rows])
    alive = await beating(service.bus, [row.id for row in rows])
    found = [search.summary(row, saved.get(row.id, (0, 0)), row.id in alive) for row in rows]
    if asked.statuses is not None:  # whether a session beats stands in Redis, not in the query
        found = [one for one in found if one.status is not None]
    cursor = None
    if more:
        last = rows[-1]
        cursor = SearchCursor(last_created_at=last.created_at, last_session_id=last.id)
    return answer(FoundSessions(sessions=found, next_cursor=cursor))
