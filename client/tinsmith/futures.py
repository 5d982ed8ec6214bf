"""Futures that can be awaited or asked for their result, and the one thread that fulfils them.

Every client of a process shares one event loop in one daemon thread, so a call returns at once
wherever it is made: in a script, a notebook, a thread, or another event loop.
"""

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class APIFuture(Generic[T_co]):
    """The promise of a result. Giving up waiting for it does not undo the request."""

    def __init__(self, future: "concurrent.futures.Future[T_co]") -> None:
        self._future = future

    def result(self, timeout: float | None = None) -> T_co:
        """The result, blocking; TimeoutError after so many seconds."""
        return self._future.result(timeout)

    async def result_async(self, timeout: float | None = None) -> T_co:
        """The result, awaited; TimeoutError after so many seconds."""
        return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._future)), timeout)

    def future(self) -> "concurrent.futures.Future[T_co]":
        """For concurrent.futures.wait and its kin. Cancelling it cancels a sample on the service."""
        return self._future

    async def coroutine(self) -> T_co:
        """For what takes a coroutine and not an awaitable, such as asyncio.create_task."""
        return await self

    def __await__(self) -> Generator[Any, None, T_co]:
        return self.result_async().__await__()


class ClientFuture(APIFuture[T_co]):
    """The promise of a client, which may also be used as that client: it then waits by itself."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy and pickle ask for these; they are no reason to block
            raise AttributeError(name)
        return getattr(self.result(), name)


class _Thread:
    """The loop of this process. A forked child makes its own: threads do not survive a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process_id = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._process_id != os.getpid():
                self._loop = asyncio.new_event_loop()
                self._process_id = os.getpid()
                threading.Thread(
                    target=self._loop.run_forever, name="tinsmith", daemon=True
                ).start()
            return self._loop


_THREAD = _Thread()


def start(work: Coroutine[Any, Any, T]) -> "concurrent.futures.Future[T]":
    """Run it in the client's thread, after whatever was started before. Cancelling cancels it."""
    return asyncio.run_coroutine_threadsafe(work, _THREAD.loop())


def start_lasting(work: Coroutine[Any, Any, T]) -> "concurrent.futures.Future[T]":
    """As `start`, but cancelling the future leaves the work running: half an op would be a gap."""

    async def shielded() -> T:
        return await asyncio.shield(asyncio.ensure_future(work))

    return start(shielded())
