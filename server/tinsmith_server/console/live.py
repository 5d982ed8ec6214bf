"""Pages that change by themselves: a stream of events with the piece of the page that is new.

Who watches is looked at again now and then, so a stream ends with its session.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from fastapi.responses import HTMLResponse, Response, StreamingResponse
from starlette.requests import Request

from tinsmith_server.accounts import sign_in
from tinsmith_server.accounts.caller import SignedIn
from tinsmith_server.console.security import session_secret
from tinsmith_server.service import Service

_EVERY_SECONDS = 1.0
_LOOK_AGAIN_SECONDS = 10.0
_LONGEST_SECONDS = 3600.0
Piece = Callable[[], Awaitable[tuple[str, object]]]
"""The HTML as of now, and a sign that differs when there is something new to draw."""


async def stream(request: Request, service: Service, member: SignedIn, piece: Piece) -> Response:
    """Whoever does not ask for a stream gets the piece as it is now."""
    if "text/event-stream" not in request.headers.get("accept", ""):
        html, _ = await piece()
        return HTMLResponse(html)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    events = _events(request, service, member, piece)
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def _events(
    request: Request, service: Service, member: SignedIn, piece: Piece
) -> AsyncIterator[str]:
    shown: tuple[str, object] = ("", None)
    began = looked = time.monotonic()
    while not service.bus.draining and time.monotonic() - began < _LONGEST_SECONDS:
        if time.monotonic() - looked > _LOOK_AGAIN_SECONDS:
            looked = time.monotonic()
            if not await _still_there(request, service, member):
                return
            yield ": still here\n\n"
        html, sign = await piece()
        if html != shown[0]:
            yield message(html)
        if sign != shown[1] and shown[0]:
            yield message("new", event="charts")
        shown = (html, sign)
        await asyncio.sleep(_EVERY_SECONDS)


async def _still_there(request: Request, service: Service, member: SignedIn) -> bool:
    async with service.db.begin() as sql:
        return await sign_in.signed_in(sql, session_secret(request)) == member


def message(data: str, event: str | None = None) -> str:
    lines: Sequence[str] = data.splitlines() or [""]
    head = f"event: {event}\n" if event else ""
    return head + "".join(f"data: {line}\n" for line in lines) + "\n"
