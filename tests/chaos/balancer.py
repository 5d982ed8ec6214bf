"""A TCP balancer before the API processes: round robin over those that listen, nothing remembered.

It stands where nginx would. A connection that finds nobody is closed, and its client comes again.
"""

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Sequence
from typing import Self


class Balancer:
    """Serves from a thread of its own while entered; `url` is where clients go."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports, self._turn = list(ports), itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(self._start(), self._loop)
        self.url = f"http://127.0.0.1:{started.result(10)}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        open_ones = asyncio.all_tasks() - {asyncio.current_task()}
        for task in open_ones:
            task.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)

    async def _start(self) -> int:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = next(self._turn)
        for offset in range(len(self._ports)):
            port = self._ports[(first + offset) % len(self._ports)]
            try:
                there = await asyncio.open_connection("127.0.0.1", port)
            except OSError:  # killed just now, or not there again yet
                continue
            with contextlib.suppress(asyncio.CancelledError):  # the balancer itself ends
                await asyncio.gather(_pipe(reader, there[1]), _pipe(there[0], writer))
            return
        writer.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.CancelledError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()
