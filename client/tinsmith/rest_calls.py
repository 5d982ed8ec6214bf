"""What the clients of the REST calls share: one request, one typed answer. It opens no session."""

from collections.abc import Coroutine, Mapping
from typing import Any, Literal, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from tinsmith.futures import APIFuture, start
from tinsmith.protocol.errors import BadRequest
from tinsmith.protocol.paths import TinkerPath
from tinsmith.transport import Transport

T = TypeVar("T")
AccessScope = Literal["owned", "accessible"]


class RestCalls:
    """Of a service's own transport, or of an address and a key as ServiceClient finds them."""

    def __init__(
        self,
        transport: Transport | None = None,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
    ) -> None:
        if transport is not None and (base_url is not None or api_key is not None):
            raise ValueError("transport: it has its own base_url and api_key; leave them out.")
        self._transport = transport or Transport(base_url, api_key)

    def _get(self, path: str, answer: type[T], /, **query: object) -> APIFuture[T]:
        """The answer's fields; a query parameter that is None is not sent."""
        given = {name: value for name, value in query.items() if value is not None}
        address = f"{path}?{urlencode(given)}" if given else path

        async def ask() -> T:
            return msgspec.json.decode(await self._transport.get(address), type=answer)

        return started(ask())

    def _post(
        self, path: str, body: object, answer: type[T], headers: Mapping[str, str] | None = None
    ) -> APIFuture[T]:
        async def ask() -> T:
            data = await self._transport.post(path, body, headers)
            return msgspec.json.decode(data, type=answer)

        return started(ask())

    def _do(self, method: str, path: str, body: object = None) -> APIFuture[None]:
        """A change that answers nothing."""
        return started(self._transport.send(method, path, body))


def started(work: Coroutine[Any, Any, T]) -> APIFuture[T]:
    return APIFuture(start(work))


def segment(text: str) -> str:
    return quote(text, safe=":")


def parsed(tinker_path: str) -> TinkerPath:
    """ValueError when it is not of the form `tinker://<run>/<segment>/<name>`."""
    try:
        return TinkerPath.parse(tinker_path, "tinker_path")
    except BadRequest as error:
        raise ValueError(str(error)) from None


def checkpoint_address(tinker_path: str) -> str:
    path = parsed(tinker_path)
    return f"/training_runs/{segment(path.run_id)}/checkpoints/{path.checkpoint_id}"
