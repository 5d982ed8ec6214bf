"""Saving, listing and deleting checkpoints; listing the runs they belong to."""

import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol import bodies
from tinsmith.protocol.bodies import (
    Addressed,
    PathRef,
    SaveWeights,
    SaveWeightsForSampler,
    Submitted,
    WeightsInfo,
)
from tinsmith.protocol.errors import BadRequest, Unsupported
from tinsmith.protocol.jobs import Kind, SaveJob, encode
from tinsmith.protocol.paths import (
    CheckpointKind,
    TinkerPath,
    checkpoint_name,
    sampling_session_id,
    session_of,
    training_request_id,
)

from tinsmith_server.auth import Caller, User
from tinsmith_server.checkpoints import repository
from tinsmith_server.db import Checkpoint, SamplingSession, TrainingRun, now
from tinsmith_server.runs import repository as runs
from tinsmith_server.runs.ops import MakeBody, submit_op
from tinsmith_server.service import Served, Service
from tinsmith_server.sessions.routes import metadata
from tinsmith_server.wire import answer, decode, read, read_body

router = APIRouter()
_TTL_SECONDS = (3600, 10 * 365 * 24 * 3600)
Limit = Annotated[int, Query(ge=1, le=1000)]
Offset = Annotated[int, Query(ge=0)]


@router.post("/save_weights")
async def save_weights(request: Request, user: User, service: Served) -> Response:
    raw = await read_body(request)
    op = decode(raw, Addressed)

    async def make(run: TrainingRun) -> bytes:
        body = decode(raw, SaveWeights)
        return await _named(service, user, run, body, CheckpointKind.TRAINING, body.overwrite)

    return await _submit(service, user, op, Kind.SAVE_WEIGHTS, make)


@router.post("/save_weights_for_sampler")
async def save_weights_for_sampler(request: Request, user: User, service: Served) -> Response:
    """Under a name, or unnamed as a sampling session of its own."""
    raw = await read_body(request)
    op = decode(raw, Addressed)

    async def make(run: TrainingRun) -> bytes:
        body = decode(raw, SaveWeightsForSampler)
        if body.kind != "snapshot":
            raise Unsupported(f"kind: {body.kind[:40]!r} is not offered; use 'snapshot'.")
        if body.path is not None:
            return await _named(service, user, run, body, CheckpointKind.SAMPLER, overwrite=False)
        if body.sampling_session_seq_id is None:
            raise BadRequest("path: give it, or sampling_session_seq_id for an unnamed sampler.")
        return await _unnamed(service, user, run, body, body.sampling_session_seq_id)

    return await _submit(service, user, op, Kind.SAVE_WEIGHTS_FOR_SAMPLER, make)


async def _submit(
    service: Service, user: Caller, op: Addressed, kind: Kind, make: MakeBody
) -> Response:
    request_id = await submit_op(service, user, op, kind, make)
    return answer(Submitted(request_id=request_id, model_id=op.model_id))


async def _named(
    service: Service,
    user: Caller,
    run: TrainingRun,
    body: SaveWeights | SaveWeightsForSampler,
    kind: CheckpointKind,
    overwrite: bool,
) -> bytes:
    if body.path is None:
        raise BadRequest("path: a checkpoint needs a name.")
    path = TinkerPath(run.id, kind, checkpoint_name(body.path))
    row = _row(user, run, body, kind, path.name)
    async with service.db.begin() as sql:
        if not overwrite and await repository.taken(sql, user, path, row.request_id):
            raise BadRequest(
                f"path: {path} is taken. Choose another name"
                + (", or save with overwrite=True." if kind is CheckpointKind.TRAINING else ".")
            )
        row = await _insert(sql, row)
    payload = {
        "type": "save_weights" if kind is CheckpointKind.TRAINING else "save_weights_for_sampler",
        "path": str(path),
    }
    return _job(row, payload, optimizer=kind is CheckpointKind.TRAINING)


async def _unnamed(
    service: Service,
    user: Caller,
    run: TrainingRun,
    body: SaveWeightsForSampler,
    session_seq_id: int,
) -> bytes:
    """A retry brings another session_seq_id under the same seq_id; the first one stands."""
    row = _row(user, run, body, CheckpointKind.SAMPLER, None)
    session_id = session_of(run.id)
    async with service.db.begin() as sql:
        row = await _insert(sql, row)
        sampler = await _sampler_of(sql, row.request_id)
        if sampler is None:
            sampler = SamplingSession(
                id=sampling_session_id(session_id, session_seq_id),
                session_id=session_id,
                organization_id=user.organization_id,
                base_model=run.base_model,
                checkpoint_id=row.id,
                request_id=row.request_id,
            )
            sql.add(sampler)
    payload = {"type": "save_weights_for_sampler", "sampling_session_id": sampler.id}
    return _job(row, payload, optimizer=False, behind=True)


def _row(
    user: Caller,
    run: TrainingRun,
    body: SaveWeights | SaveWeightsForSampler,
    kind: CheckpointKind,
    name: str | None,
) -> Checkpoint:
    ttl = body.ttl_seconds
    if ttl is not None and not _TTL_SECONDS[0] <= ttl <= _TTL_SECONDS[1]:
        raise BadRequest(f"ttl_seconds: {ttl} is not from {_TTL_SECONDS[0]} to {_TTL_SECONDS[1]}.")
    return Checkpoint(
        id=uuid.uuid4().hex,
        run_id=run.id,
        organization_id=user.organization_id,
        request_id=training_request_id(run.id, body.seq_id),
        kind=kind.value,
        name=name,
        user_metadata=metadata(body.user_metadata),
        expires_at=None if ttl is None else now() + timedelta(seconds=ttl),
    )


async def _insert(sql: AsyncSession, row: Checkpoint) -> Checkpoint:
    """The row of this request: a resent one finds its own."""
    known = await sql.scalar(select(Checkpoint).where(Checkpoint.request_id == row.request_id))
    if known is not None:
        return known
    sql.add(row)
    return row


async def _sampler_of(sql: AsyncSession, request_id: str) -> SamplingSession | None:
    return await sql.scalar(select(SamplingSession).where(SamplingSession.request_id == request_id))


def _job(
    row: Checkpoint, payload: dict[str, str], *, optimizer: bool, behind: bool = False
) -> bytes:
    prefix = repository.prefix(row)
    return encode(SaveJob(prefix=prefix, optimizer=optimizer, answer=payload, behind=behind))


@router.post("/weights_info")
async def weights_info(request: Request, user: User, service: Served) -> Response:
    body = await read(request, PathRef)
    path = TinkerPath.parse(body.tinker_path, "tinker_path")
    async with service.db.begin() as sql:
        _, run = await repository.ready_at(sql, user, path)
    info = WeightsInfo(
        base_model=run.base_model,
        is_lora=True,
        lora_rank=run.lora_rank,
        train_unembed=run.train_unembed,
        train_mlp=run.train_mlp,
        train_attn=run.train_attn,
        optimizer_config={"type": "adamw"},
    )
    return answer(info)


@router.get("/training_runs")
async def training_runs(
    user: User, service: Served, limit: Limit = 20, offset: Offset = 0
) -> Response:
    async with service.db.begin() as sql:
        rows, total = await runs.page(sql, user, limit, offset)
        found = [await _run_body(sql, row) for row in rows]
    cursor = bodies.Cursor(offset=offset, limit=limit, total_count=total)
    return answer(bodies.TrainingRuns(training_runs=found, cursor=cursor))


@router.get("/training_runs/{run_id}")
async def training_run(run_id: str, user: User, service: Served) -> Response:
    async with service.db.begin() as sql:
        return answer(await _run_body(sql, await runs.owned_by(sql, user, run_id)))


async def _run_body(sql: AsyncSession, run: TrainingRun) -> bodies.TrainingRun:
    rows = await repository.of_run(sql, run.id)
    return bodies.TrainingRun(
        training_run_id=run.id,
        base_model=run.base_model,
        model_owner=run.organization_id,
        is_lora=True,
        last_request_time=run.last_request_at,
        lora_rank=run.lora_rank,
        last_checkpoint=_last(rows, CheckpointKind.TRAINING),
        last_sampler_checkpoint=_last(rows, CheckpointKind.SAMPLER),
        user_metadata=run.user_metadata,
    )


def _last(rows: Sequence[Checkpoint], kind: CheckpointKind) -> bodies.Checkpoint | None:
    row = next((row for row in rows if row.kind == kind.value), None)
    return None if row is None else repository.as_body(row)


@router.get("/training_runs/{run_id}/checkpoints")
async def run_checkpoints(run_id: str, user: User, service: Served) -> Response:
    async with service.db.begin() as sql:
        run = await runs.owned_by(sql, user, run_id)
        rows = await repository.of_run(sql, run.id)
    return answer(bodies.Checkpoints(checkpoints=[repository.as_body(row) for row in rows]))


@router.get("/checkpoints")
async def checkpoints(
    user: User, service: Served, limit: Limit = 100, offset: Offset = 0
) -> Response:
    async with service.db.begin() as sql:
        rows, total = await repository.page(sql, user, limit, offset)
    cursor = bodies.Cursor(offset=offset, limit=limit, total_count=total)
    listed = [repository.as_body(row) for row in rows]
    return answer(bodies.Checkpoints(checkpoints=listed, cursor=cursor))


@router.delete("/training_runs/{run_id}/checkpoints/{kind}/{name}")
async def delete_checkpoint(
    run_id: str, kind: str, name: str, user: User, service: Served
) -> Response:
    path = TinkerPath.parse(f"tinker://{run_id}/{kind}/{name}")
    async with service.db.begin() as sql:
        row, _ = await repository.ready_at(sql, user, path)
        await sql.delete(row)
    await service.checkpoints.delete_files(row)
    return answer({})
