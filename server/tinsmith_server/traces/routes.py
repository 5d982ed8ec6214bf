"""A session's requests as a trace that ui.perfetto.dev opens: when each came, when it was answered."""

from fastapi import APIRouter, Request
from fastapi.responses import Response
from tinsmith.protocol import keys
from tinsmith.protocol.bodies import Answer

from tinsmith_server.auth import User
from tinsmith_server.downloads.routes import link
from tinsmith_server.service import Served
from tinsmith_server.sessions.repository import owned_by
from tinsmith_server.traces.perfetto import Slice, trace
from tinsmith_server.wire import answer

router = APIRouter()
_TRACE = "/signed/sessions/{session_id}/trace.pftrace"


class TraceExport(Answer, kw_only=True, frozen=True):
    status: str
    url: str | None = None
    error: str | None = None


@router.get("/sessions/{session_id}/trace_export")
async def trace_export(session_id: str, request: Request, user: User, service: Served) -> Response:
    """Ready at once: the trace is made when its link is followed, of what had finished by then."""
    async with service.db.begin() as sql:
        row = await owned_by(sql, user, session_id)
    url, _ = link(service, request, _TRACE.format(session_id=row.id))
    return answer(TraceExport(status="ready", url=url))


@router.get(_TRACE)
async def signed_trace(session_id: str, expires: int, signature: str, service: Served) -> Response:
    service.signer.check(_TRACE.format(session_id=session_id), expires, signature)
    lines = await service.bus.redis.lrange(keys.trace(session_id), 0, -1)
    slices = [_slice(line.decode()) for line in lines]
    data = trace(f"Session {session_id}", slices)
    return Response(data, media_type="application/octet-stream")


def _slice(line: str) -> Slice:
    """As DONE wrote it (protocol/keys.py)."""
    kind, request_id, submitted, ended, state, tokens = line.split(" ")
    notes: dict[str, str | int] = {"request_id": request_id, "state": state}
    if int(tokens):
        notes["tokens"] = int(tokens)
    track = request_id.rpartition(":")[0]
    return Slice(track, kind, int(submitted), max(int(submitted), int(ended)), notes)
