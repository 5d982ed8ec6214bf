"""The calls that come hundreds of times a second, found by name.

The framework tries its routes one after another and then works out what the endpoint wants: with a
thousand polls held that was half of an API process's time. These endpoints all want the same three
things. They are ordinary routes as well, and errors are rendered as there.
"""

from collections.abc import Awaitable, Callable, Mapping

from fastapi import Request
from fastapi.responses import Response
from redis.exceptions import RedisError
from sqlalchemy.exc import DataError, OperationalError
from starlette.types import ASGIApp, Receive, Scope, Send
from tinsmith.protocol.errors import TinsmithError

from tinsmith_server.auth import Caller, authenticated
from tinsmith_server.service import Service
from tinsmith_server.wire import render_error

Endpoint = Callable[[Request, Caller, Service], Awaitable[Response]]
EXPECTED = (TinsmithError, DataError, OperationalError, RedisError)


class Direct:
    def __init__(self, app: ASGIApp, endpoints: Mapping[str, Endpoint]) -> None:
        """Endpoints of POST by their whole path."""
        self._app, self._endpoints = app, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = None
        if scope["type"] == "http" and scope["method"] == "POST":
            endpoint = self._endpoints.get(scope["path"])
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        scope["direct"] = True
        request = Request(scope, receive, send)
        try:
            user = await authenticated(request)
            response = await endpoint(request, user, request.app.state.service)
        except EXPECTED as error:
            response = await render_error(request, error)
        await response(scope, receive, send)
