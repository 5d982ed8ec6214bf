"""Copying a checkpoint, one's own or a published one, into a project of one's own.

A copy is a run that nobody can train, with one checkpoint and files of its own: what becomes of the
source is nothing to it.
"""

import hashlib
import uuid

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.download_bodies import CopyWeights, WeightsCopied
from tinsmith.protocol.errors import BadRequest, Unsupported
from tinsmith.protocol.paths import TinkerPath

from tinsmith_server.accounts import audit
from tinsmith_server.auth import Caller, User
from tinsmith_server.checkpoints import placing, repository
from tinsmith_server.checkpoints.ttl import expiry
from tinsmith_server.db import Checkpoint, TrainingRun
from tinsmith_server.reach import check_project
from tinsmith_server.service import Served, Service
from tinsmith_server.sessions.repository import open_session, project_name
from tinsmith_server.wire import answer, read

router = APIRouter()


@router.post("/copy_weights")
async def copy_weights(request: Request, user: User, service: Served) -> Response:
    """A request that is sent again finds its copy or finishes it."""
    body = await read(request, CopyWeights)
    if body.weights_access_token or request.headers.get("x-tinker-weights-access-token"):
        raise Unsupported("weights_access_token: ask the owner to publish the checkpoint instead.")
    source = TinkerPath.parse(body.source_path, "source_path")
    project_id = await _project(service, user, body)
    expires_at = expiry(body.ttl_seconds)
    request_id = _request_id(user, _key(request, body))
    await service.allowances.check_stored(user, project_id)
    async with service.db.begin() as sql:
        original, run = await repository.ready_at(sql, user, source)
    try:
        async with service.db.begin() as sql:
            copied = await placing.known(sql, request_id)
            if copied is None:
                copied = await _insert(sql, user, original, run, project_id, request_id)
                copied.expires_at = expires_at
    except IntegrityError:  # the same request, sent twice at once
        async with service.db.begin() as sql:
            copied = await placing.known(sql, request_id)
    assert copied is not None
    if not copied.ready:
        await _fill(service, user, original, copied, source)
    return answer(WeightsCopied(tinker_path=str(repository.path_of(copied))))


async def _project(service: Service, user: Caller, body: CopyWeights) -> str:
    if body.session_id is not None and body.model_seq_id is not None:
        async with service.db.begin() as sql:
            return (await open_session(sql, user, body.session_id)).project_id
    if body.destination_project_id is None:
        raise BadRequest(
            "destination_project_id: name a project, or a session_id and model_seq_id."
        )
    project_id = project_name(body.destination_project_id, "destination_project_id")
    return check_project(user, project_id, "destination_project_id")


def _key(request: Request, body: CopyWeights) -> str | None:
    """What stays the same when the request is sent again."""
    if body.session_id is not None and body.model_seq_id is not None:
        return f"{body.session_id}:{body.model_seq_id}"
    return request.headers.get("x-idempotency-key")


def _request_id(user: Caller, key: str | None) -> str:
    unique = key or uuid.uuid4().hex
    return f"copy:{hashlib.sha256(f'{user.organization_id}:{unique}'.encode()).hexdigest()}"


async def _insert(
    sql: AsyncSession,
    user: Caller,
    original: Checkpoint,
    run: TrainingRun,
    project_id: str,
    request_id: str,
) -> Checkpoint:
    title = f"Copy of {repository.path_of(original)}"
    copy_run = await placing.new_run(sql, user, project_id, title, like=run)
    copied = placing.checkpoint_in(sql, copy_run, request_id, original.kind, original.name)
    copied.user_metadata = original.user_metadata
    return copied


async def _fill(
    service: Service, user: Caller, original: Checkpoint, copied: Checkpoint, source: TinkerPath
) -> None:
    await service.storage.copy_folder(repository.prefix(original), repository.prefix(copied))
    pending = (Checkpoint.id == copied.id) & Checkpoint.ready.is_(False)
    filled = update(Checkpoint).where(pending).values(ready=True, size_bytes=original.size_bytes)
    async with service.db.begin() as sql:
        if await sql.scalar(filled.returning(Checkpoint.id)) is not None:
            path = repository.path_of(copied)
            audit.record_checkpoint(sql, user, "checkpoint_copied", path, source_path=str(source))
