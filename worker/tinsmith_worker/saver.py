"""Writes to the store beside the batch loop, one folder after another, in a thread of its own.

What is written was copied when it was handed over, so training goes on meanwhile.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum, auto

import structlog

from tinsmith_worker.store import Store, StoreRefused, StoreUnavailable

_log = structlog.get_logger()
Files = Callable[[], dict[str, bytes]]


class Until(Enum):
    """How long a write is tried."""

    TRIED = auto()
    """Once."""
    REFUSED = auto()
    """While the store is out of reach; one that is full, or forbids it, ends it."""
    WRITTEN = auto()
    """Whatever comes."""

    def goes_on_after(self, error: StoreUnavailable) -> bool:
        return self is Until.WRITTEN or (
            self is Until.REFUSED and not isinstance(error, StoreRefused)
        )


@dataclass(frozen=True)
class _Write:
    run_id: str
    prefix: str
    files: Files
    until: Until
    unless_there: bool
    held_bytes: int
    done: "Future[int]"


class Saver:
    def __init__(self, store: Store, ring: Callable[[str], None]) -> None:
        """`ring` wakes the loop for a run; it is called from the thread."""
        self._store, self._ring = store, ring
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._open: Counter[str] = Counter()
        self._folders: dict[str, Future[int]] = {}
        """What is open, by where it goes."""
        self._counting = threading.Lock()  # the loop and the thread both do
        self._failed: deque[_Write] = deque()
        self._out_of_reach: set[str] = set()
        self._away = self._closing = False
        self.held_bytes = 0
        """In memory for writes that are open, by their own account."""

    def write(
        self,
        run_id: str,
        prefix: str,
        files: Files,
        *,
        until: Until = Until.TRIED,
        unless_there: bool = False,
        held_bytes: int = 0,
    ) -> "Future[int]":
        """The folder's size, or StoreUnavailable; `files` runs in the thread.

        What has to be tried again stays open until `try_again` has had it through. With `unless_there`
        a folder that the store has, or will have, is left as it is, and its size is 0.
        """
        write = _Write(run_id, prefix, files, until, unless_there, held_bytes, Future())
        with self._counting:
            if unless_there and (on_its_way := self._folders.get(prefix)):
                return on_its_way
            self._open[run_id] += 1
            self._folders[prefix] = write.done
            self.held_bytes += held_bytes
        self._pool.submit(self._work, write)
        return write.done

    def delete(self, prefix: str) -> None:
        """Tried once: it only takes room, and the background process throws away what stays."""
        self._pool.submit(self._delete, prefix)

    def _delete(self, prefix: str) -> None:
        try:
            self._store.delete_folder(prefix)
        except StoreUnavailable as error:
            _log.warning("not_deleted", prefix=prefix, exc_info=error)

    def _work(self, write: _Write) -> None:
        try:
            size = self._written(write)
        except StoreUnavailable as error:
            self._away = not isinstance(error, StoreRefused)
            if write.until.goes_on_after(error):
                _log.warning("write_will_be_repeated", prefix=write.prefix, error=str(error))
                self._out_of_reach.add(write.run_id)
                self._failed.append(write)
                return
            self._settle(write, error)
        except Exception as error:  # noqa: BLE001 - whoever waits for the write is told
            self._settle(write, error)
        else:
            self._away = False
            write.done.set_result(size)
            self._closed(write)

    def _written(self, write: _Write) -> int:
        if self._closing and self._away:
            raise StoreUnavailable("out of reach a moment ago, and there is no time")
        if write.unless_there and self._store.has_folder(write.prefix):
            return 0
        return self._store.write_folder(write.prefix, write.files())

    def _settle(self, write: _Write, error: Exception) -> None:
        write.done.set_exception(error)
        self._closed(write)

    def _closed(self, write: _Write) -> None:
        self._out_of_reach.discard(write.run_id)
        with self._counting:
            self.held_bytes -= write.held_bytes
            if self._folders.get(write.prefix) is write.done:
                del self._folders[write.prefix]
            self._open[write.run_id] -= 1
            if not self._open[write.run_id]:
                del self._open[write.run_id]
        self._ring(write.run_id)

    def try_again(self) -> None:
        while self._failed:
            self._pool.submit(self._work, self._failed.popleft())

    def out_of_reach(self, run_id: str) -> bool:
        """Whether a write of the run has failed and is yet to get through."""
        return run_id in self._out_of_reach

    def writes_for(self, run_id: str) -> bool:
        return self._open[run_id] > 0

    def close(self) -> None:
        """Everything that was handed over is tried first, until something finds the store out of reach."""
        self._closing = True
        self._pool.shutdown(wait=True)
