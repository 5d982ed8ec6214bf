"""Clones of a sampler: each gets a number of its own, and its requests live above a billion times it."""

from fastapi import APIRouter, Request
from fastapi.responses import Response
from tinsmith.protocol import keys
from tinsmith.protocol.bodies import JoinSamplingSession, SamplingSessionJoined

from tinsmith_server.auth import User
from tinsmith_server.sampling.repository import owned_by
from tinsmith_server.service import Served
from tinsmith_server.sessions.repository import open_session
from tinsmith_server.wire import answer, read

router = APIRouter()
_REMEMBER_SECONDS = 30 * 24 * 3600


@router.post("/join_sampling_session")
async def join_sampling_session(request: Request, user: User, service: Served) -> Response:
    """A new number each time, also for a request that is sent again: a number is not worth a search."""
    body = await read(request, JoinSamplingSession)
    async with service.db.begin() as sql:
        row = await owned_by(sql, user, body.sampling_session_id)
        await open_session(sql, user, row.session_id)
    key = keys.clones(row.id)
    async with service.bus.redis.pipeline(transaction=True) as pipeline:
        pipeline.incr(key)
        pipeline.expire(key, _REMEMBER_SECONDS)
        number, _ = await pipeline.execute()
    return answer(SamplingSessionJoined(client_counter=number))
