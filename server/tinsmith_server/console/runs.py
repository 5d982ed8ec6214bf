"""Training runs: the table, one run live, several side by side."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, Response
from sqlalchemy import String, cast, select
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request
from tinsmith.protocol.errors import BadRequest, NotFound

from tinsmith_server.checkpoints.repository import listed
from tinsmith_server.console import live, run_rows, timeline
from tinsmith_server.console.paging import After, turned, window
from tinsmith_server.console.security import Viewer, console_router
from tinsmith_server.console.templating import page, piece
from tinsmith_server.curves import repository as curves
from tinsmith_server.db import Checkpoint, RunAdoption, RunStep, Session, TrainingRun
from tinsmith_server.service import Served, Service

router: APIRouter = console_router()
MOST_COMPARED = 6
_TABLE_ROWS = 100
_SHOWN_CHECKPOINTS = 100


@router.get("/training_runs")
async def runs_page(
    request: Request,
    member: Viewer,
    service: Served,
    after: After = "",
    q: str = "",
    project: str = "",
    model: str = "",
) -> Response:
    query = run_rows.of_organization(member.organization_id)
    if q:
        query = query.where(_matches(q))
    if model:
        query = query.where(TrainingRun.base_model == model)
    if project:
        sessions = select(Session.id).where(
            Session.organization_id == member.organization_id, Session.project_id == project
        )
        query = query.where(TrainingRun.session_id.in_(sessions))
    shown = window(query, TrainingRun.created_at, TrainingRun.id, after)
    async with service.db.begin() as sql:
        found = (await sql.scalars(shown)).all()
        rows = await run_rows.rows(sql, service.bus, found)
    cards = await service.bus.models()
    return page(
        request,
        "runs.html",
        runs=turned(request, after, rows, lambda row: (row.run.created_at, row.run.id)),
        q=q,
        project=project,
        model=model,
        first_model=cards[0].name if cards else "name-of-a-base-model",
    )


def _matches(text: str) -> Any:
    """In its id, its base model or what its client said of it."""
    said = cast(TrainingRun.user_metadata, String)
    return (
        TrainingRun.id.contains(text, autoescape=True)
        | TrainingRun.base_model.contains(text, autoescape=True)
        | said.contains(text, autoescape=True)
    )


@router.get("/training_runs/compare")
async def compare_page(
    request: Request,
    member: Viewer,
    service: Served,
    run: Annotated[list[str] | None, Query()] = None,
) -> Response:
    ids = _compared(run)
    async with service.db.begin() as sql:
        found = [await _owned(sql, member.organization_id, one) for one in ids]
        rows = await run_rows.rows(sql, service.bus, found)
    return page(request, "compare.html", rows=rows)


@router.get("/training_runs/compare.json")
async def compared_curves(
    member: Viewer, service: Served, run: Annotated[list[str] | None, Query()] = None
) -> Response:
    """One x for all: the steps that any of them has."""
    ids = _compared(run)
    async with service.db.begin() as sql:
        for one in ids:
            await _owned(sql, member.organization_id, one)
        steps = {one: await curves.steps(sql, one) for one in ids}
    xs = sorted({row.step for rows in steps.values() for row in rows})
    losses = [{row.step: row.loss for row in steps[one]} for one in ids]
    series = [
        {"label": one, "values": [loss.get(x) for x in xs]}
        for one, loss in zip(ids, losses, strict=True)
    ]
    return JSONResponse({"x": xs, "series": series})


def _compared(run: list[str] | None) -> list[str]:
    ids = list(dict.fromkeys(run or []))
    if not 1 <= len(ids) <= MOST_COMPARED:
        raise BadRequest(f"run: choose one to {MOST_COMPARED} runs.")
    return ids


@router.get("/training_runs/{run_id}")
async def run_page(request: Request, run_id: str, member: Viewer, service: Served) -> Response:
    return page(request, "run.html", **await _one(service, member.organization_id, run_id))


@router.get("/training_runs/{run_id}/live")
async def live_run(request: Request, run_id: str, member: Viewer, service: Served) -> Response:
    async with service.db.begin() as sql:
        await _owned(sql, member.organization_id, run_id)

    async def render() -> tuple[str, object]:
        found = await _one(service, member.organization_id, run_id)
        last = found["row"].last
        return piece(request, "fragments/run.html", **found), last and last.step

    return await live.stream(request, service, member, render)


@router.get("/training_runs/{run_id}/curves.json")
async def run_curves(run_id: str, member: Viewer, service: Served) -> Response:
    await service.curves.collect()
    async with service.db.begin() as sql:
        await _owned(sql, member.organization_id, run_id)
        steps = await curves.steps(sql, run_id)
    return JSONResponse(curves.columns(steps))


async def _one(service: Service, organization_id: str, run_id: str) -> dict[str, Any]:
    """What came until now is brought in first, so that the page is as new as the run."""
    await service.curves.collect()
    async with service.db.begin() as sql:
        run = await _owned(sql, organization_id, run_id)
        [row] = await run_rows.rows(sql, service.bus, [run])
        session = await sql.get_one(Session, run.session_id)
        adoptions = select(RunAdoption).where(RunAdoption.run_id == run_id)
        found: dict[str, Any] = {
            "run": run,
            "row": row,
            "session": session,
            "steps": await curves.last_steps(sql, run_id, _TABLE_ROWS),
            "adoptions": (await sql.scalars(adoptions.order_by(RunAdoption.epoch.desc()))).all(),
            "checkpoints": await _checkpoints(sql, run_id),
        }
    found["rate"] = tokens_per_second(found["steps"])
    found["timeline"] = await timeline.of_run(service.bus, run_id)
    return found


async def _owned(sql: AsyncSession, organization_id: str, run_id: str) -> TrainingRun:
    row = await sql.get(TrainingRun, run_id)
    if row is None or row.organization_id != organization_id:
        raise NotFound(f"There is no training run {run_id[:120]!r}.")
    return row


async def _checkpoints(sql: AsyncSession, run_id: str) -> Sequence[Checkpoint]:
    query = select(Checkpoint).where(Checkpoint.run_id == run_id, listed())
    newest_first = query.order_by(Checkpoint.created_at.desc(), Checkpoint.id)
    return (await sql.scalars(newest_first.limit(_SHOWN_CHECKPOINTS))).all()


def tokens_per_second(steps: Sequence[RunStep]) -> float | None:
    """Over the newest twenty steps, newest first; the first of them only says when it began."""
    some = steps[:21]
    seconds = (some[0].at - some[-1].at).total_seconds() if some else 0.0
    return sum(one.tokens for one in some[:-1]) / seconds if seconds > 0 else None
