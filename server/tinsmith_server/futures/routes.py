"""Polls. The server holds them: both of the SDK's loops ask again at once."""

import random

from fastapi import APIRouter, Request
from fastapi.responses import Response
from tinsmith.protocol.bodies import Completions, FutureRef, RetrieveFutures
from tinsmith.protocol.errors import Gone, NotFound
from tinsmith.protocol.jobs import Content, Kind, Result
from tinsmith.protocol.paths import session_of

from tinsmith_server.auth import Caller, User
from tinsmith_server.bus import FutureState
from tinsmith_server.checkpoints import repository as checkpoints
from tinsmith_server.futures.json_results import as_json
from tinsmith_server.futures.queue_state import pending
from tinsmith_server.service import Served, Service
from tinsmith_server.wire import answer, read

router = APIRouter()
_PROTOBUF = "application/x-protobuf"
_SHORTEST_HOLD = 0.7


def spread(poll_seconds: float) -> float:
    """How long this poll is held: polls that came together must not all leave, and return, together."""
    return random.uniform(_SHORTEST_HOLD, 1.0) * poll_seconds


@router.post("/retrieve_future")
async def retrieve_future(request: Request, user: User, service: Served) -> Response:
    """The result in the form that Accept names; 408 while it is pending."""
    body = await read(request, FutureRef)
    future = await service.bus.future(body.request_id, user.organization_id)
    if future is None or not await in_reach(service, user, body.request_id, future):
        raise Gone(
            f"request_id: {body.request_id[:160]!r} is unknown; its result may have expired."
        )
    result = future.result or await service.bus.wait(
        body.request_id, spread(service.settings.poll_seconds)
    )
    if result is None:
        return answer(await pending(service, user, body.request_id, future), 408)
    if future.kind in (Kind.SAVE_WEIGHTS, Kind.SAVE_WEIGHTS_FOR_SAMPLER):
        result = await service.checkpoints.settle(body.request_id, result)
    return _render(result, request.headers.get("accept", ""))


async def in_reach(service: Service, user: Caller, request_id: str, future: FutureState) -> bool:
    """Whether the future is of the caller's organization and, for a key of one project, of that one."""
    if future.tenant != user.organization_id:
        return False
    if user.project_id is None:
        return True
    if request_id.startswith("copy:"):
        async with service.db.begin() as sql:
            return await checkpoints.copied_by(sql, user, request_id)
    try:
        await service.owners.session(user, session_of(request_id))
    except NotFound:
        return False
    return True


def _render(result: Result, accept: str) -> Response:
    if result.content is Content.JSON or _PROTOBUF not in accept:
        return Response(as_json(result), media_type="application/json")
    return Response(result.data, media_type=_PROTOBUF)


@router.post("/retrieve_futures")
async def retrieve_futures(request: Request, user: User, service: Served) -> Response:
    """Completions of one sampling session after a cursor; waits for the first unless told not to."""
    body = await read(request, RetrieveFutures)
    session_id, clone_id = body.target.sampling_session_id, body.target.cloned_sampler_id
    await service.owners.sampler(user, session_id)
    await service.bus.forget(
        [one for one in body.retrieved_request_ids if one.startswith(f"{session_id}:")]
    )
    hold = spread(service.settings.poll_seconds)
    if body.timeout is not None:
        hold = max(0.0, min(body.timeout, hold))
    found = await service.bus.wait_completions(session_id, clone_id, body.prev_cursor, hold)
    return answer(Completions(completions=found, cursor=body.prev_cursor + len(found)))
