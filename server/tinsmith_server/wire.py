"""Bytes in, bytes out: reading bodies within bounds, and rendering answers and errors.

Errors go out whole, uncompressed and with a length: the SDK takes any other 400 for a broken proxy
and tries again.
"""

import asyncio
import uuid
import zlib
from collections.abc import Mapping
from typing import TypeVar

import msgspec
import structlog
import zstandard
from fastapi import Request
from fastapi.responses import Response
from redis.exceptions import RedisError
from sqlalchemy.exc import DataError, OperationalError
from tinsmith.protocol.errors import BadRequest, TinsmithError, Unprocessable

T = TypeVar("T")
_DRAINED_BODIES = 4
_POLL = "/retrieve_future"
_AGAIN_SECONDS = 1.0
_log = structlog.get_logger()


async def read_body(request: Request) -> bytes:
    """The body, unpacked. An oversize one is read to its end first, or the answer would be lost."""
    limit = request.app.state.service.settings.max_body_bytes
    data, size = bytearray(), 0
    async for piece in request.stream():
        size += len(piece)
        if size > _DRAINED_BODIES * limit:
            break
        if size <= limit:
            data += piece
    if size > limit:
        raise BadRequest(f"body: larger than the limit of {limit} bytes; send fewer datums.")
    return _unpack(bytes(data), request.headers.get("content-encoding", "").lower(), limit)


def _unpack(data: bytes, encoding: str, limit: int) -> bytes:
    if encoding in ("", "identity"):
        return data
    try:
        if encoding == "zstd":
            with zstandard.ZstdDecompressor().stream_reader(
                data, read_across_frames=True
            ) as reader:
                unpacked = reader.read(limit + 1)
        elif encoding == "gzip":
            unpacked = zlib.decompressobj(31).decompress(data, limit + 1)
        else:
            raise BadRequest(f"Content-Encoding: {encoding[:40]!r} is not zstd or gzip.")
    except (zstandard.ZstdError, zlib.error):
        raise BadRequest(f"body: it is not {encoding}, as Content-Encoding says.") from None
    if len(unpacked) > limit:
        raise BadRequest(f"body: unpacked it is larger than the limit of {limit} bytes.")
    return unpacked


def decode(body: bytes, kind: type[T]) -> T:
    """A JSON body as its struct; raises Unprocessable naming the field."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unprocessable(f"body: {error}") from None


async def read(request: Request, kind: type[T]) -> T:
    return decode(await read_body(request), kind)


def answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


async def render_error(request: Request, error: Exception) -> Response:
    """What was raised on purpose is told; anything else is logged and told as a reference."""
    if isinstance(error, TinsmithError):
        return answer({"detail": error.message}, error.status, error.headers)
    if isinstance(error, DataError):
        # PostgreSQL has no NUL in a text, and no text longer than its column.
        detail = "body: a text holds a NUL character or is too long; an id is too large."
        return answer({"detail": detail}, 422)
    if isinstance(error, OperationalError | RedisError):
        # A part is down or its disk is full: the client tries again until somebody has mended it.
        part = "database" if isinstance(error, OperationalError) else "queue"
        _log.error("part_unavailable", part=part, path=request.url.path, exc_info=error)
        detail = f"The service's {part} cannot be used just now (is it down, or its disk full?)."
        if request.url.path.endswith(_POLL):
            return await _still_waiting(detail)
        return answer({"detail": detail}, 503)
    reference = uuid.uuid4().hex[:12]
    _log.error("internal_error", path=request.url.path, reference=reference, exc_info=error)
    # Rendered outside of what gives every other answer its id.
    told = structlog.contextvars.get_contextvars().get("request_id")
    headers = {"X-Request-Id": told} if told else {}
    return answer({"detail": f"Internal error (reference {reference})."}, 500, headers)


async def _still_waiting(why: str) -> Response:
    """A poll while a part is down: nothing is lost, and the caller is told what it waits for.

    The SDK would come again at once, after a 503 as well.
    """
    await asyncio.sleep(_AGAIN_SECONDS)
    told = {"type": "try_again", "queue_state": "paused_capacity", "queue_state_reason": why}
    return answer(told, 408)
