"""Sessions: found by name, project and metadata; one with its runs and samplers."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request
from tinsmith.protocol.errors import NotFound

from tinsmith_server.console import run_rows
from tinsmith_server.console.paging import After, turned, window
from tinsmith_server.console.security import Viewer, console_router
from tinsmith_server.console.templating import page
from tinsmith_server.db import SamplingSession, Session, TrainingRun, Usage
from tinsmith_server.service import Served
from tinsmith_server.sessions.liveness import beating
from tinsmith_server.sessions.search import tagged

router: APIRouter = console_router()
_SHOWN = 200


@router.get("/sessions")
async def sessions_page(
    request: Request, member: Viewer, service: Served, after: After = "", q: str = ""
) -> Response:
    """A word with `=` is metadata; any other is looked for in names, ids and projects."""
    query = select(Session).where(Session.organization_id == member.organization_id, _matches(q))
    shown = window(query, Session.created_at, Session.id, after)
    async with service.db.begin() as sql:
        found: Sequence[Session] = (await sql.scalars(shown)).all()
        counts = await _run_counts(sql, [one.id for one in found])
    alive = await beating(service.bus, [one.id for one in found])
    return page(
        request,
        "sessions.html",
        sessions=turned(request, after, found, lambda row: (row.created_at, row.id)),
        counts=counts,
        alive=alive,
        q=q,
    )


def _matches(q: str) -> ColumnElement[bool]:
    words = q.split()
    pairs = dict(word.split("=", 1) for word in words if "=" in word)
    plain = [word for word in words if "=" not in word]
    return and_(tagged(pairs), *(_named(word) for word in plain))


def _named(word: str) -> ColumnElement[bool]:
    columns: tuple[Any, ...] = (Session.display_name, Session.id, Session.project_id)
    first, *others = (func.lower(one).contains(word.lower(), autoescape=True) for one in columns)
    for other in others:
        first = first | other
    return first


async def _run_counts(sql: AsyncSession, session_ids: Sequence[str]) -> dict[str, int]:
    query = (
        select(TrainingRun.session_id, func.count())
        .where(TrainingRun.session_id.in_(session_ids))
        .group_by(TrainingRun.session_id)
    )
    return {row[0]: row[1] for row in (await sql.execute(query)).all()}


@router.get("/sessions/{session_id}")
async def session_page(
    request: Request, session_id: str, member: Viewer, service: Served
) -> Response:
    async with service.db.begin() as sql:
        session = await sql.get(Session, session_id)
        if session is None or session.organization_id != member.organization_id:
            raise NotFound(f"There is no session {session_id[:80]!r}.")
        runs = select(TrainingRun).where(TrainingRun.session_id == session_id)
        found = (
            await sql.scalars(runs.order_by(TrainingRun.created_at.desc()).limit(_SHOWN))
        ).all()
        rows = await run_rows.rows(sql, service.bus, found)
        samplers = select(SamplingSession).where(SamplingSession.session_id == session_id)
        newest = samplers.order_by(SamplingSession.created_at.desc()).limit(_SHOWN)
        used = (
            select(Usage.kind, func.sum(Usage.tokens))
            .where(Usage.organization_id == member.organization_id, Usage.session_id == session_id)
            .group_by(Usage.kind)
        )
        samplers_found = (await sql.scalars(newest)).all()
        tokens = (await sql.execute(used)).all()
    alive = bool(await beating(service.bus, [session_id]))
    return page(
        request,
        "session.html",
        session=session,
        rows=rows,
        alive=alive,
        samplers=samplers_found,
        used=tokens,
    )
