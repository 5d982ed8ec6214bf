"""What was asked once is remembered for a while, and asked once however many ask together.

Knows nothing of what it remembers. Failures are not remembered, and what is out of date is let go
whenever something new comes: what is held was asked for in the last `seconds`.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Remembered(Generic[K, V]):
    def __init__(
        self, ask: Callable[[K], Awaitable[V]], *, seconds: float, most: int = 10_000
    ) -> None:
        self._ask, self._seconds, self._most = ask, seconds, most
        self._known: OrderedDict[K, tuple[V, float]] = OrderedDict()
        """The oldest first."""
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
        gone = [key for key, known in self._known.items() if matches(key, known[0])]
        for key in gone:
            del self._known[key]
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
        at = time.monotonic()
        while self._known and (len(self._known) >= self._most or self._oldest_until <= at):
            self._known.popitem(last=False)
        self._known[key] = (value, at + self._seconds)

    @property
    def _oldest_until(self) -> float:
        return next(iter(self._known.values()))[1]
