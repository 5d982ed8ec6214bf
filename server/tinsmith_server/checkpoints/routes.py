"""Checkpoints over REST: look up, list, publish, expire, delete."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from tinsmith.protocol import bodies
from tinsmith.protocol.bodies import PathRef, TimeToLive, WeightsInfo
from tinsmith.protocol.errors import BadRequest
from tinsmith.protocol.paths import TinkerPath

from tinsmith_server.accounts import audit
from tinsmith_server.auth import User
from tinsmith_server.checkpoints import repository
from tinsmith_server.checkpoints.ttl import expiry
from tinsmith_server.paging import Limit, Offset, cursor
from tinsmith_server.runs import repository as runs
from tinsmith_server.runs.optimizers import config_of
from tinsmith_server.service import Served
from tinsmith_server.wire import answer, read

router = APIRouter()
CHECKPOINT = "/training_runs/{run_id}/checkpoints/{kind}/{name}"


def _path(run_id: str, kind: str, name: str) -> TinkerPath:
    return TinkerPath.parse(f"tinker://{run_id}/{kind}/{name}")


AtPath = Annotated[TinkerPath, Depends(_path)]


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
        optimizer_config=config_of(run),
    )
    return answer(info)


@router.get("/training_runs/{run_id}/checkpoints")
async def run_checkpoints(run_id: str, user: User, service: Served) -> Response:
    """Of one's own run; of someone else's what they published, or it is not there."""
    async with service.db.begin() as sql:
        rows = await repository.visible_of_run(sql, user, run_id)
        if not rows:
            await runs.owned_by(sql, user, run_id)
    return answer(bodies.Checkpoints(checkpoints=[repository.as_body(row) for row in rows]))


@router.get("/checkpoints")
async def checkpoints(
    user: User, service: Served, limit: Limit = 100, offset: Offset = 0
) -> Response:
    async with service.db.begin() as sql:
        rows, total = await repository.page(sql, user, limit, offset)
    found = [repository.as_body(row) for row in rows]
    return answer(bodies.Checkpoints(checkpoints=found, cursor=cursor(limit, offset, total)))


@router.delete(CHECKPOINT)
async def delete_checkpoint(path: AtPath, user: User, service: Served) -> Response:
    await service.checkpoints.delete(user, path)
    return answer({})


@router.post(f"{CHECKPOINT}/publish")
async def publish(path: AtPath, user: User, service: Served) -> Response:
    """From now on whoever knows the path may read it."""
    return await _set_public(path, user, service, public=True)


@router.delete(f"{CHECKPOINT}/publish")
async def unpublish(path: AtPath, user: User, service: Served) -> Response:
    """Samplers and runs that were made from it meanwhile stay."""
    return await _set_public(path, user, service, public=False)


async def _set_public(path: TinkerPath, user: User, service: Served, *, public: bool) -> Response:
    async with service.db.begin() as sql:
        row, _ = await repository.owned_at(sql, user, path)
        if row.public is public:
            raise BadRequest(f"path: {path} is {'already' if public else 'not'} published.")
        row.public = public
        event = "checkpoint_published" if public else "checkpoint_unpublished"
        audit.record_checkpoint(sql, user, event, path)
    return answer({})


@router.put(f"{CHECKPOINT}/ttl")
async def set_ttl(path: AtPath, request: Request, user: User, service: Served) -> Response:
    """Counted from now; null lets it live for ever."""
    body = await read(request, TimeToLive)
    async with service.db.begin() as sql:
        row, _ = await repository.owned_at(sql, user, path)
        row.expires_at = expiry(body.ttl_seconds)
        audit.record_checkpoint(sql, user, "checkpoint_ttl_set", path, ttl_seconds=body.ttl_seconds)
    return answer({})
