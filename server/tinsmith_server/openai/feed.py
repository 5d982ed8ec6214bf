"""Tokens on their way from the workers to the requests of this process that stream them.

Best effort: the result of a request holds all its tokens, so what is missed here comes with it.
"""

import asyncio
import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

import msgspec
import structlog
from redis.exceptions import RedisError
from tinsmith.protocol import keys
from tinsmith.protocol.jobs import DrawnToken

from tinsmith_server.bus import Bus

_log = structlog.get_logger()


class TokenFeed:
    def __init__(self, bus: Bus) -> None:
        self.process = uuid.uuid4().hex
        self._bus = bus
        self._readers: dict[str, asyncio.Queue[Any]] = {}
        self._tail: asyncio.Task[None] | None = None
        self._closing = False

    def start(self) -> None:
        self._tail = asyncio.create_task(self._follow(), name="token-feed")

    async def close(self) -> None:
        self._closing = True  # a cancelled read can end as a time-out, and would be tried again
        if self._tail:
            self._tail.cancel()
            await asyncio.gather(self._tail, return_exceptions=True)

    @contextlib.contextmanager
    def reading(self, request_ids: list[str], queue: "asyncio.Queue[Any]") -> Iterator[None]:
        """Until it is left, drawn tokens of these requests are put into the queue."""
        self._readers.update(dict.fromkeys(request_ids, queue))
        try:
            yield
        finally:
            for request_id in request_ids:
                del self._readers[request_id]

    async def _follow(self) -> None:
        stream, last = keys.tokens(self.process), "0"
        while not self._closing:
            try:
                answer = await self._bus.redis.xread({stream: last}, block=2000, count=1000)
            except RedisError as error:
                _log.warning("redis_unreachable", error=type(error).__name__)
                await asyncio.sleep(0.5)
                continue
            for entry_id, fields in _entries(answer):
                last = entry_id.decode()
                for drawn in msgspec.msgpack.decode(fields[b"drawn"], type=list[DrawnToken]):
                    if queue := self._readers.get(drawn.request_id):
                        queue.put_nowait(drawn)


def _entries(answer: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """redis-py answers a list of pairs under RESP2 and a dict under RESP3."""
    if isinstance(answer, dict):
        return [entry for batches in answer.values() for batch in batches for entry in batch]
    return [entry for _, entries in answer or [] for entry in entries]
