"""Answers that are sent while they are made, and clients that leave before they have them."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Any, TypeVar

import msgspec
from fastapi import Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from tinsmith_server.openai.errors import describe, encode

T = TypeVar("T")
_HUNG_UP = 499  # nobody reads it but a log


class _ClientGone(Exception):
    """Nobody is there to be answered."""


async def answered(request: Request, work: Coroutine[Any, Any, object]) -> Response:
    """The result as JSON, unless the client hangs up first; then the work is cancelled."""
    try:
        data = msgspec.json.encode(await _while_there(request.receive, work))
    except _ClientGone:
        return Response(status_code=_HUNG_UP)
    return Response(data, media_type="application/json")


async def server_sent(request: Request, chunks: AsyncGenerator[object, None]) -> Response:
    """Events of JSON, ended by [DONE]. What fails before the first has a status of its own."""
    try:
        first = await _while_there(request.receive, _next(chunks))
    except _ClientGone:
        return Response(status_code=_HUNG_UP)
    return _ServerSent(request, first, chunks)


class _ServerSent(Response):
    media_type = "text/event-stream"

    def __init__(self, request: Request, first: object, rest: AsyncGenerator[object, None]) -> None:
        self.status_code, self.background, self.body = 200, None, b""
        self._request, self._first, self._rest = request, first, rest
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        try:
            await _while_there(receive, self._send_all(send))
        except _ClientGone:
            return
        finally:
            await self._rest.aclose()

    async def _send_all(self, send: Send) -> None:
        async for event in self._events():
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncIterator[bytes]:
        yield _event(msgspec.json.encode(self._first))
        try:
            async for chunk in self._rest:
                yield _event(msgspec.json.encode(chunk))
        except Exception as error:  # noqa: BLE001 - the status is sent already; the stream tells the rest
            _, body = await describe(self._request, error)
            yield _event(encode(body))
            return
        yield _event(b"[DONE]")


async def _while_there(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Its result; when the client hangs up first, the work is cancelled. The body must have been read."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_hung_up(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise _ClientGone
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _next(chunks: AsyncGenerator[object, None]) -> object:
    return await anext(chunks)


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
