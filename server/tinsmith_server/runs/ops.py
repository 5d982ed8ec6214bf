"""An op of a run on its way to the queue.

Once an op's seq is known it must take its place in line, whatever is wrong with it: the SDK has
already counted it, and would wait for ever behind a number that never comes. So a refusal after that
point is a failed future, not a 4xx.
"""

from collections.abc import Awaitable, Callable

from tinsmith.protocol.bodies import Addressed
from tinsmith.protocol.errors import BadRequest, TinsmithError
from tinsmith.protocol.jobs import Job, Kind, failure
from tinsmith.protocol.paths import session_of, training_request_id

from tinsmith_server.auth import Caller
from tinsmith_server.db import TrainingRun
from tinsmith_server.service import Service
from tinsmith_server.sessions.repository import still_open

MakeBody = Callable[[TrainingRun], Awaitable[bytes]]
_COUNTED = (Kind.FORWARD, Kind.FORWARD_BACKWARD)
"""What a spent month has no more of; what was trained can still be stepped and saved."""
_STORED = (Kind.SAVE_WEIGHTS, Kind.SAVE_WEIGHTS_FOR_SAMPLER)


async def submit_op(
    service: Service,
    user: Caller,
    op: Addressed,
    kind: Kind,
    make_body: MakeBody,
    num_tokens: int = 0,
) -> str:
    """Queue the op, or its refusal, under its seq; answers the request id."""
    if op.seq_id < 1:
        raise BadRequest(f"seq_id: {op.seq_id} is not a number from 1.")
    run = await service.owners.run(user, op.model_id)
    session = still_open(await service.owners.session(user, session_of(run.id)))
    bounds = await service.bounds(user, session.project_id, run.id)
    request_id = training_request_id(run.id, op.seq_id)
    try:
        if kind in _COUNTED:
            await service.allowances.check_month(user, session.project_id)
        if kind in _STORED:
            await service.allowances.check_stored(user, session.project_id)
        body = await make_body(run)
    except TinsmithError as error:
        refusal = failure(error.message)
        await service.bus.submit_failed(
            user.organization_id, run.id, op.seq_id, kind, refusal, bounds
        )
        return request_id
    job = Job(
        request_id=request_id,
        run_id=run.id,
        seq_id=op.seq_id,
        kind=kind,
        body=body,
        num_tokens=num_tokens,
    )
    await service.bus.submit(user.organization_id, run.base_model, job, bounds)
    return request_id
