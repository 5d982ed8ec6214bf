"""What was asked once is remembered for a while, and asked once however many ask together.

Knows nothing of what it remembers. Failures are not remembered.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Remembered(Generic[K, V]):
    def __init__(
        self, ask: Callable[[K], Awaitable[V]], *, seconds: float, most: int = 10_000
    ) -> None:
        self._ask, self._seconds, self._most = ask, seconds, most
        self._known: dict[K, tuple[V, float]] = {}
        self._asked: dict[K, asyncio.Task[V]] = {}

    async def get(self, key: K) -> V:
        known = self._known.get(key)
        if known is not None and time.monotonic() < known[1]:
            return known[0]
        task = self._asked.get(key)
        if task is None:
            task = self._asked[key] = asyncio.create_task(self._find(key))
        return await asyncio.shield(task)  # one who leaves must not take the others along

    def forget(self, matches: Callable[[K, V], bool]) -> None:
        """What is being asked just now may be out of date when it comes, so it is not kept."""
        self._known = {
            key: known for key, known in self._known.items() if not matches(key, known[0])
        }
        self._asked.clear()

    async def _find(self, key: K) -> V:
        me = asyncio.current_task()
        self._known.pop(key, None)
        try:
            value = await self._ask(key)
            if self._asked.get(key) is me:  # nothing was forgotten meanwhile
                self._keep(key, value)
        finally:
            if self._asked.get(key) is me:
                del self._asked[key]
        return value

    def _keep(self, key: K, value: V) -> None:
        if len(self._known) >= self._most:
            del self._known[next(iter(self._known))]
        self._known[key] = (value, time.monotonic() + self._seconds)
