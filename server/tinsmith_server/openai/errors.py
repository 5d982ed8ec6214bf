"""Errors as OpenAI's clients read them: {"error": {message, type, param, code}}.

Those clients try 408, 409, 429 and 5xx again, so as everywhere nothing permanent carries one of them.
"""

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from tinsmith.protocol.errors import TinsmithError

from tinsmith_server.openai.generation import Failed
from tinsmith_server.wire import render_error

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    429: "rate_limit_error",
}
_CODES = {401: "invalid_api_key", 404: "not_found"}
_FIELD = re.compile(r"([a-z_]+(?:\[\d+\])*(?:\.[a-z_]+)*): ")
_PLACE = re.compile(r"at `\$\.([a-z_]+)|field `([a-z_]+)`")
_TOO_LONG = "leave no room in the model's context"


class ErrorBody(msgspec.Struct, kw_only=True, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIRoute(APIRoute):
    """Renders whatever its endpoint raises."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_in_their_words(request: Request) -> Response:
            try:
                return await handle(request)
            except Exception as error:  # noqa: BLE001 - rendered here as it is everywhere else
                return await render(request, error)

        return handle_in_their_words


async def render(request: Request, error: Exception) -> Response:
    status, body = await describe(request, error)
    headers = dict(error.headers) if isinstance(error, TinsmithError) else {}
    return Response(encode(body), status, headers, media_type="application/json")


async def describe(request: Request, error: Exception) -> tuple[int, ErrorBody]:
    """What is told of an error: everywhere the same, here in another envelope."""
    if isinstance(error, Failed):
        status, message = 500, str(error)
    else:
        told = await render_error(request, error)
        status, message = told.status_code, str(json.loads(bytes(told.body))["detail"])
    if status == 422:
        status = 400  # what OpenAI answers to a body that does not parse
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    param = _param(message)
    code = "context_length_exceeded" if _TOO_LONG in message else _CODES.get(status)
    if status == 404 and param == "model":
        code = "model_not_found"
    return status, ErrorBody(message=message, type=kind, param=param, code=code)


def encode(body: ErrorBody) -> bytes:
    return msgspec.json.encode({"error": body})


def _param(message: str) -> str | None:
    """The field that a sentence begins with, or that the parser points at."""
    if place := _PLACE.search(message):
        return place[1] or place[2]
    field = _FIELD.match(message)
    return field[1] if field and field[1] != "body" else None
