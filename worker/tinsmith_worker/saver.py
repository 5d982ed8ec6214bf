"""Writes to the store beside the batch loop, one folder after another, in a thread of its own.

What is written was copied when it was handed over, so training goes on meanwhile.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from tinsmith_worker.store import Store, StoreUnavailable

_log = structlog.get_logger()
Files = Callable[[], dict[str, bytes]]


@dataclass(frozen=True)
class _Write:
    run_id: str
    prefix: str
    files: Files
    until_it_works: bool
    done: "Future[int]"


class Saver:
    def __init__(self, store: Store, ring: Callable[[str], None]) -> None:
        """`ring` wakes the loop for a run; it is called from the thread."""
        self._store, self._ring = store, ring
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._open: Counter[str] = Counter()
        self._counting = threading.Lock()  # the loop and the thread both do
        self._failed: deque[_Write] = deque()

    def write(
        self, run_id: str, prefix: str, files: Files, *, until_it_works: bool = False
    ) -> "Future[int]":
        """The folder's size, or StoreUnavailable; `files` runs in the thread.

        With `until_it_works` a write that failed stays open until `try_again` has had it through.
        """
        write = _Write(run_id, prefix, files, until_it_works, Future())
        with self._counting:
            self._open[run_id] += 1
        self._pool.submit(self._work, write)
        return write.done

    def _work(self, write: _Write) -> None:
        try:
            size = self._store.write_folder(write.prefix, write.files())
        except StoreUnavailable as error:
            if write.until_it_works:
                _log.error("write_will_be_repeated", prefix=write.prefix, exc_info=error)
                self._failed.append(write)
                return
            self._settle(write, error)
        except Exception as error:  # noqa: BLE001 - whoever waits for the write is told
            self._settle(write, error)
        else:
            write.done.set_result(size)
            self._closed(write)

    def _settle(self, write: _Write, error: Exception) -> None:
        write.done.set_exception(error)
        self._closed(write)

    def _closed(self, write: _Write) -> None:
        with self._counting:
            self._open[write.run_id] -= 1
            if not self._open[write.run_id]:
                del self._open[write.run_id]
        self._ring(write.run_id)

    def try_again(self) -> None:
        while self._failed:
            self._pool.submit(self._work, self._failed.popleft())

    def writes_for(self, run_id: str) -> bool:
        return self._open[run_id] > 0

    def close(self) -> None:
        """Everything that was handed over is tried first."""
        self._pool.shutdown(wait=True)
