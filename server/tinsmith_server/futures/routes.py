"""Polls. The server holds them: both of the SDK's loops ask again at once."""

from fastapi import APIRouter, Request
from fastapi.responses import Response
from tinsmith.protocol.bodies import Completions, FutureRef, RetrieveFutures
from tinsmith.protocol.errors import Gone
from tinsmith.protocol.jobs import Content, Kind, Result

from tinsmith_server.auth import User
from tinsmith_server.futures.json_results import as_json
from tinsmith_server.futures.queue_state import pending
from tinsmith_server.sampling.repository import owned_by
from tinsmith_server.service import Served
from tinsmith_server.wire import answer, read

router = APIRouter()
_PROTOBUF = "application/x-protobuf"


@router.post("/retrieve_future")
async def retrieve_future(request: Request, user: User, service: Served) -> Response:
    """The result in the form that Accept names; 408 while it is pending."""
    body = await read(request, FutureRef)
    future = await service.bus.future(body.request_id)
    if future is None or future.tenant != user.organization_id:
        raise Gone(
            f"request_id: {body.request_id[:160]!r} is unknown; its result may have expired."
        )
    result = await service.bus.wait(body.request_id, service.settings.poll_seconds)
    if result is None:
        return answer(await pending(service, body.request_id, future), 408)
    if future.kind in (Kind.SAVE_WEIGHTS, Kind.SAVE_WEIGHTS_FOR_SAMPLER):
        result = await service.checkpoints.settle(body.request_id, result)
    return _render(result, request.headers.get("accept", ""))


def _render(result: Result, accept: str) -> Response:
    if result.content is Content.JSON or _PROTOBUF not in accept:
        return Response(as_json(result), media_type="application/json")
    return Response(result.data, media_type=_PROTOBUF)


@router.post("/retrieve_futures")
async def retrieve_futures(request: Request, user: User, service: Served) -> Response:
    """Completions of one sampling session after a cursor; waits for the first unless told not to."""
    body = await read(request, RetrieveFutures)
    session_id, clone_id = body.target.sampling_session_id, body.target.cloned_sampler_id
    async with service.db.begin() as sql:
        await owned_by(sql, user, session_id)
    await service.bus.forget(
        [one for one in body.retrieved_request_ids if one.startswith(f"{session_id}:")]
    )
    hold = service.settings.poll_seconds if body.timeout is None else body.timeout
    hold = max(0.0, min(hold, service.settings.poll_seconds))
    found = await service.bus.wait_completions(session_id, clone_id, body.prev_cursor, hold)
    return answer(Completions(completions=found, cursor=body.prev_cursor + len(found)))
