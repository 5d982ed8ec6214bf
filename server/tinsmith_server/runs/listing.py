"""Training runs over REST: one, or a page of them."""

from collections.abc import Mapping

from fastapi import APIRouter
from fastapi.responses import Response
from tinsmith.protocol import bodies
from tinsmith.protocol.paths import CheckpointKind

from tinsmith_server.auth import Caller, User
from tinsmith_server.checkpoints import repository as checkpoints
from tinsmith_server.db import Checkpoint, TrainingRun
from tinsmith_server.paging import AccessScope, Limit, Offset, cursor
from tinsmith_server.runs import repository
from tinsmith_server.service import Served
from tinsmith_server.wire import answer

router = APIRouter()


@router.get("/training_runs")
async def training_runs(
    user: User,
    service: Served,
    limit: Limit = 20,
    offset: Offset = 0,
    access_scope: AccessScope = "owned",
    project_id: str | None = None,
) -> Response:
    """The organization's, in both scopes: what others published is found by its path, not listed."""
    async with service.db.begin() as sql:
        rows, total = await repository.page(sql, user, limit, offset, project_id)
        newest = await checkpoints.newest_of_runs(sql, user, [row.id for row in rows])
    found = [_body(user, row, newest) for row in rows]
    return answer(bodies.TrainingRuns(training_runs=found, cursor=cursor(limit, offset, total)))


@router.get("/training_runs/{run_id}")
async def training_run(
    run_id: str, user: User, service: Served, access_scope: AccessScope = "owned"
) -> Response:
    async with service.db.begin() as sql:
        if access_scope == "owned":
            row = await repository.owned_by(sql, user, run_id)
        else:
            row = await repository.accessible_by(sql, user, run_id)
        newest = await checkpoints.newest_of_runs(sql, user, [row.id])
    return answer(_body(user, row, newest))


def _body(
    user: Caller, run: TrainingRun, newest: Mapping[tuple[str, str], Checkpoint]
) -> bodies.TrainingRun:
    def last(kind: CheckpointKind) -> bodies.Checkpoint | None:
        row = newest.get((run.id, kind.value))
        return None if row is None else checkpoints.as_body(row)

    return bodies.TrainingRun(
        training_run_id=run.id,
        base_model=run.base_model,
        model_owner=run.organization_id,
        is_lora=True,
        last_request_time=run.last_request_at,
        lora_rank=run.lora_rank,
        last_checkpoint=last(CheckpointKind.TRAINING),
        last_sampler_checkpoint=last(CheckpointKind.SAMPLER),
        user_metadata=run.user_metadata if run.organization_id == user.organization_id else None,
    )
