"""Reads from the store beside the batch loop, in threads of its own.

Whoever needs a folder asks for it, is told that it is on its way, and asks again once it is there. A
store that is out of reach is asked again and again: nothing fails because of it, it takes longer.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from tinsmith_worker.store import Store, StoreUnavailable

_log = structlog.get_logger()
Files = dict[str, bytes]


class OnItsWay(Exception):
    """The folder is not here yet."""


class Fetcher:
    def __init__(self, store: Store, ring: Callable[[str], None]) -> None:
        """`ring` wakes the loop for a run; it is called from the threads."""
        self._store, self._ring = store, ring
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="fetcher")
        self._reads: dict[str, dict[str, Future[Files]]] = {}
        """By run and folder, until the run has no more use for them."""
        self._failed: set[str] = set()
        """Runs that `try_again` will look again for."""
        self._out_of_reach: set[str] = set()

    def files(self, run_id: str, prefix: str) -> Files:
        """The folder, or OnItsWay; raises FolderDamaged for one that is not whole."""
        reads = self._reads.setdefault(run_id, {})
        if prefix not in reads:
            reads[prefix] = self._begin(run_id, prefix)
        read = reads[prefix]
        if not read.done():
            raise OnItsWay(prefix)
        try:
            files = read.result()
        except StoreUnavailable as error:
            _log.warning("read_will_be_repeated", prefix=prefix, error=str(error))
            self._failed.add(run_id)
            self._out_of_reach.add(run_id)
            raise OnItsWay(prefix) from None
        self._out_of_reach.discard(run_id)
        return files

    def _begin(self, run_id: str, prefix: str) -> "Future[Files]":
        read = self._pool.submit(self._store.read_folder, prefix)
        read.add_done_callback(lambda _: self._ring(run_id))
        return read

    def news_for(self, run_id: str) -> bool:
        """Whether everything that was asked for the run has come."""
        reads = self._reads.get(run_id, {}).values()
        return run_id not in self._failed and all(read.done() for read in reads)

    def out_of_reach(self, run_id: str) -> bool:
        return run_id in self._out_of_reach

    def look_again(self, run_id: str, prefix: str) -> None:
        """What is not there may be there at the next `try_again`."""
        del self._reads[run_id][prefix]
        self._failed.add(run_id)

    def try_again(self) -> None:
        for run_id in self._failed:
            for prefix, read in self._reads.get(run_id, {}).items():
                if read.done() and isinstance(read.exception(), StoreUnavailable):
                    self._reads[run_id][prefix] = self._begin(run_id, prefix)
        self._failed.clear()

    def reader(self, run_id: str) -> "Reader":
        return Reader(self, run_id)

    def forget(self, run_id: str) -> None:
        self._reads.pop(run_id, None)
        self._failed.discard(run_id)
        self._out_of_reach.discard(run_id)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class Reader:
    """What a run needs of the store, for whoever need not know which run it is."""

    fetcher: Fetcher
    run_id: str

    def files(self, prefix: str) -> Files:
        """Raises OnItsWay, or FolderDamaged."""
        return self.fetcher.files(self.run_id, prefix)

    def later(self, prefix: str) -> OnItsWay:
        """To be raised: what is not there is looked for again."""
        self.fetcher.look_again(self.run_id, prefix)
        return OnItsWay(prefix)
