"""Saving: named checkpoints, and the weights behind an unnamed sampler."""

import uuid
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.bodies import (
    Addressed,
    SaveWeights,
    SaveWeightsExternal,
    SaveWeightsForSampler,
    Submitted,
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
from tinsmith_server.checkpoints.ttl import expiry
from tinsmith_server.db import Checkpoint, SamplingSession, TrainingRun, now
from tinsmith_server.runs.ops import MakeBody, submit_op
from tinsmith_server.service import Served, Service
from tinsmith_server.sessions.routes import metadata
from tinsmith_server.wire import answer, decode, read_body

router = APIRouter()
_MAX_RECIPIENTS = 10
_TIED = (
    "save_weights_external: this model's unembedding is its embedding, and the run trains the unembedding "
    "alone. Merged into the one tensor of both, the adapter is not what was trained: serve it unmerged, merge "
    "with `tinsmith checkpoints merge --untie-unembedding`, or train with train_unembed=False."
)
INFLIGHT = "inflight"
_OLDER_STAY = timedelta(hours=1)
_ANSWERS = {
    CheckpointKind.TRAINING: "save_weights",
    CheckpointKind.SAMPLER: "save_weights_for_sampler",
    CheckpointKind.EXTERNAL: "save_weights_external",
}


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
        if body.kind not in ("snapshot", INFLIGHT):
            raise Unsupported(f"kind: {body.kind[:40]!r} is neither 'snapshot' nor 'inflight'.")
        if body.path is not None and body.kind == INFLIGHT:
            raise BadRequest("path: inflight weights have no name; leave it out.")
        if body.path is not None:
            return await _named(service, user, run, body, CheckpointKind.SAMPLER, overwrite=False)
        if body.sampling_session_seq_id is None:
            raise BadRequest("path: give it, or sampling_session_seq_id for an unnamed sampler.")
        return await _unnamed(service, user, run, body, body.sampling_session_seq_id)

    return await _submit(service, user, op, Kind.SAVE_WEIGHTS_FOR_SAMPLER, make)


@router.post("/save_weights_external")
async def save_weights_external(request: Request, user: User, service: Served) -> Response:
    """For use elsewhere: a PEFT adapter, encrypted if it names recipients."""
    raw = await read_body(request)
    op = decode(raw, Addressed)
    notes: dict[str, str] = {}

    async def make(run: TrainingRun) -> bytes:
        body = decode(raw, SaveWeightsExternal)
        recipients = body.age_encryption_recipients
        if recipients is not None and not 1 <= len(recipients) <= _MAX_RECIPIENTS:
            raise BadRequest(
                f"age_encryption_recipients: {len(recipients)} is not from 1 to {_MAX_RECIPIENTS}; "
                "leave it out to save without encryption."
            )
        if run.train_unembed and await _is_tied(service, run.base_model):
            notes["x-deprecation-note"] = _TIED
        return await _named(service, user, run, body, CheckpointKind.EXTERNAL, overwrite=False)

    return await _submit(service, user, op, Kind.SAVE_WEIGHTS, make, notes)


async def _is_tied(service: Service, base_model: str) -> bool:
    return any(card.tied_head for card in await service.bus.models() if card.name == base_model)


async def _submit(
    service: Service,
    user: Caller,
    op: Addressed,
    kind: Kind,
    make: MakeBody,
    notes: Mapping[str, str] | None = None,
) -> Response:
    """The notes are headers that a client logs; `make` may add to them."""
    request_id = await submit_op(service, user, op, kind, make)
    return answer(Submitted(request_id=request_id, model_id=op.model_id), headers=notes)


async def _named(
    service: Service,
    user: Caller,
    run: TrainingRun,
    body: SaveWeights | SaveWeightsForSampler | SaveWeightsExternal,
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
    payload = {"type": _ANSWERS[kind], "path": str(path)}
    if isinstance(body, SaveWeightsExternal):
        recipients = body.age_encryption_recipients
        return _job(row, payload, optimizer=False, external=True, recipients=recipients)
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
    session_id, inflight = session_of(run.id), body.kind == INFLIGHT
    async with service.db.begin() as sql:
        if inflight:
            await _let_older_go(sql, run, row.request_id)
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
                slot_run_id=run.id if inflight else None,
            )
            sql.add(sampler)
    payload = {"type": "save_weights_for_sampler", "sampling_session_id": sampler.id}
    return _job(row, payload, optimizer=False, behind=True, inflight=inflight)


async def _let_older_go(sql: AsyncSession, run: TrainingRun, request_id: str) -> None:
    """Weights that newer ones are about to replace; samples on their way may use them a while yet."""
    mine = select(SamplingSession.checkpoint_id).where(SamplingSession.slot_run_id == run.id)
    older = (
        Checkpoint.id.in_(mine)
        & Checkpoint.expires_at.is_(None)
        & (Checkpoint.request_id != request_id)
    )
    await sql.execute(update(Checkpoint).where(older).values(expires_at=now() + _OLDER_STAY))


def _row(
    user: Caller,
    run: TrainingRun,
    body: SaveWeights | SaveWeightsForSampler | SaveWeightsExternal,
    kind: CheckpointKind,
    name: str | None,
) -> Checkpoint:
    return Checkpoint(
        id=uuid.uuid4().hex,
        run_id=run.id,
        organization_id=user.organization_id,
        request_id=training_request_id(run.id, body.seq_id),
        kind=kind.value,
        name=name,
        user_metadata=metadata(body.user_metadata),
        expires_at=expiry(body.ttl_seconds),
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


def _job(row: Checkpoint, payload: dict[str, str], optimizer: bool, **more: Any) -> bytes:
    prefix = repository.prefix(row)
    return encode(SaveJob(prefix=prefix, optimizer=optimizer, answer=payload, **more))
