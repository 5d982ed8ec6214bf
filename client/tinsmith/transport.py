"""One service over HTTP: requests that are sent until answered, and results that are polled for.

It has never heard of runs or samplers. Everything here runs in the client's thread.
"""

import asyncio
import logging
import os
import random
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import msgspec

from tinsmith.exceptions import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    RequestFailedError,
    TinkerError,
    status_error,
)

_LOG = logging.getLogger("tinsmith")
_PENDING = 408
_RETRIED = frozenset({408, 409, 429})
_PATIENCE_SECONDS = 300
_FIRST_PATIENCE_SECONDS = 15  # for a service that never answered: most likely a wrong address
_CALLS_AT_ONCE = 64
PROTOBUF = "application/x-protobuf"
JSON = "application/json"


class Transport:
    def __init__(
        self, base_url: str | None, api_key: str | None, headers: Mapping[str, str] | None = None
    ) -> None:
        self.base_url = (base_url or os.environ.get("TINKER_BASE_URL") or "").rstrip("/")
        self.api_key = api_key or os.environ.get("TINKER_API_KEY") or ""
        if not self.base_url:
            raise TinkerError(
                "base_url: give it, or set TINKER_BASE_URL to the address that `tinsmith up` prints."
            )
        if not self.api_key:
            raise TinkerError(
                "api_key: give it, or set TINKER_API_KEY to a key from `tinsmith keys create`."
            )
        self._headers = {"X-API-Key": self.api_key, **(headers or {})}
        self._calls = self._pool(_CALLS_AT_ONCE)
        self._polls = self._pool(None)  # apart, so that waiting never keeps a call from leaving
        self._answered = False

    def _pool(self, max_connections: int | None) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"{self.base_url}/api/v1",
            headers=self._headers,
            timeout=httpx.Timeout(60, connect=10, pool=None),
            limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=32),
            follow_redirects=True,
        )

    async def post(
        self, path: str, body: object, headers: Mapping[str, str] | None = None
    ) -> bytes:
        content = msgspec.json.encode(body)
        answer = await self._until_answered(
            self._calls, "POST", path, content, JSON, headers=headers
        )
        return answer.content

    async def post_message(self, path: str, message: bytes) -> bytes:
        return (await self._until_answered(self._calls, "POST", path, message, PROTOBUF)).content

    async def get(self, path: str) -> bytes:
        return (await self._until_answered(self._calls, "GET", path)).content

    async def send(self, method: str, path: str, body: object = None) -> None:
        """A change of which only the success is of interest."""
        content = None if body is None else msgspec.json.encode(body)
        await self._until_answered(self._calls, method, path, content)

    async def poll(self, path: str, body: object) -> bytes:
        """A request that the service may hold for half a minute."""
        content = msgspec.json.encode(body)
        return (await self._until_answered(self._polls, "POST", path, content, JSON)).content

    async def result(self, request_id: str, accept: str = JSON) -> bytes:
        """The result of a request, however long it takes."""
        body = msgspec.json.encode({"request_id": request_id})
        while True:
            answer = await self._until_answered(
                self._polls, "POST", "/retrieve_future", body, JSON, accept
            )
            if answer.status_code != _PENDING:
                return _unless_failed(answer, request_id)

    async def close(self) -> None:
        await asyncio.gather(self._calls.aclose(), self._polls.aclose())

    async def _until_answered(
        self,
        pool: httpx.AsyncClient,
        method: str,
        path: str,
        content: bytes | None = None,
        content_type: str = JSON,
        accept: str = JSON,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Repeats what may pass by itself: every request carries its own idempotency key."""
        sent = {"Accept": accept, **(headers or {})}
        if content:
            sent["Content-Type"] = content_type
        started = asyncio.get_running_loop().time()
        for delay_seconds in _delays():
            failure: APIError
            try:
                answer = await pool.request(method, path, content=content, headers=sent)
            except httpx.TransportError as error:
                failure = self._connection_error(error)
            else:
                self._answered = True
                if note := answer.headers.get("x-deprecation-note"):
                    _LOG.warning("%s", note)
                pending = path == "/retrieve_future" and answer.status_code == _PENDING
                if answer.is_success or pending:
                    return answer
                failure = status_error(answer)
                if answer.status_code not in _RETRIED and answer.status_code < 500:
                    raise failure
                delay_seconds = _asked_delay(answer) or delay_seconds
            patience = _PATIENCE_SECONDS if self._answered else _FIRST_PATIENCE_SECONDS
            if asyncio.get_running_loop().time() - started + delay_seconds > patience:
                raise failure
            _LOG.warning("%s %s: %s Trying again.", method, path, failure.message)
            await asyncio.sleep(delay_seconds)
        raise AssertionError("delays never end")

    def _connection_error(self, error: httpx.TransportError) -> APIConnectionError:
        if isinstance(error, httpx.ReadTimeout):
            return APITimeoutError(f"No answer from {self.base_url}.")
        return APIConnectionError(f"Cannot reach {self.base_url} ({type(error).__name__}).")


def _unless_failed(answer: httpx.Response, request_id: str) -> bytes:
    if PROTOBUF not in answer.headers.get("content-type", ""):
        payload: Any = msgspec.json.decode(answer.content)
        if "error" in payload:
            category = payload.get("category", "unknown")
            raise RequestFailedError(payload["error"], request_id, category)
    return answer.content


def _delays() -> Iterator[float]:
    """Seconds between tries: doubling to eight, spread so that clients do not march in step."""
    delay_seconds = 0.25
    while True:
        delay_seconds = min(2 * delay_seconds, 8.0)
        yield delay_seconds * random.uniform(0.75, 1.0)


def _asked_delay(answer: httpx.Response) -> float | None:
    asked = answer.headers.get("retry-after", "")
    return min(float(asked), 60.0) if asked.isdigit() else None
