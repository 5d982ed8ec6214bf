"""Adapters that samplers stand on, by their folder in the store; the least used leaves first.

A fresh one is here before its folder is: sampling does not wait for the store, and the adapter stays
until the store has it.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from tinsmith_worker import checkpoint_files
from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.fetcher import Fetcher, Files, OnItsWay
from tinsmith_worker.store import FolderDamaged, Store

WAIT_SECONDS = 10.0
"""How long a folder that is not there yet may still be on its way from another worker."""


class NotThere(Exception):
    """No such folder, neither here nor in the store."""


class SamplerWeights:
    def __init__(
        self,
        store: Store,
        model: BaseModel,
        max_held: int,
        on_leave: Callable[[Adapter], None] = lambda adapter: None,
        ring: Callable[[str], None] = lambda prefix: None,
    ) -> None:
        """`ring`, from another thread: a folder that somebody asked for has been read, or was not there."""
        self._model, self._max_held, self._on_leave = model, max_held, on_leave
        self._fetcher = Fetcher(store, ring)
        self._held: OrderedDict[str, Adapter] = OrderedDict()
        self._unwritten: dict[str, Future[int]] = {}
        self._missing_since: dict[str, float] = {}

    def put(self, prefix: str, adapter: Adapter, written: "Future[int]") -> None:
        if before := self._held.pop(prefix, None):  # the save was begun again
            self._on_leave(before)
        self._held[prefix] = adapter
        self._unwritten[prefix] = written
        self._trim()

    def get(self, prefix: str) -> Adapter | None:
        """None while the folder is on its way; NotThere once it has had its time."""
        adapter = self.held(prefix)
        if adapter is not None:
            return adapter
        try:
            files = self._fetcher.files(prefix, prefix)
        except OnItsWay:
            return None
        except FolderDamaged:
            self._fetcher.look_again(prefix, prefix)
            self.expect(prefix)
            return None
        self._fetcher.forget(prefix)
        return self.admit(prefix, files)

    def held(self, prefix: str) -> Adapter | None:
        if prefix not in self._held:
            return None
        self._held.move_to_end(prefix)
        return self._held[prefix]

    def admit(self, prefix: str, files: Files) -> Adapter:
        self._missing_since.pop(prefix, None)
        self._held[prefix] = adapter = checkpoint_files.unpack_adapter(self._model, files)
        self._trim()
        return adapter

    def expect(self, prefix: str) -> None:
        """The store does not have it yet; raises NotThere once it has had its time."""
        if not self._may_still_come(prefix):
            self._fetcher.forget(prefix)
            raise NotThere(prefix)

    def news_of(self, prefix: str) -> bool:
        """Whether `get` has anything new to tell."""
        return prefix in self._held or self._fetcher.news_for(prefix)

    def out_of_reach(self, prefix: str) -> bool:
        return self._fetcher.out_of_reach(prefix)

    def forget(self, prefix: str) -> None:
        """Nobody asks for it any more."""
        self._fetcher.forget(prefix)

    def try_again(self) -> None:
        self._fetcher.try_again()

    def close(self) -> None:
        self._fetcher.close()

    def _may_still_come(self, prefix: str) -> bool:
        """Its time begins when it is first asked for; whoever asks no more is forgotten, too."""
        now = time.monotonic()
        if prefix not in self._missing_since:
            self._missing_since = {
                name: at for name, at in self._missing_since.items() if now - at < 2 * WAIT_SECONDS
            }
        since = self._missing_since.setdefault(prefix, now)
        if now - since < WAIT_SECONDS:
            return True
        del self._missing_since[prefix]
        return False

    def _trim(self) -> None:
        self._unwritten = {name: one for name, one in self._unwritten.items() if not one.done()}
        for prefix in list(self._held)[:-1]:
            if len(self._held) <= self._max_held:
                return
            if prefix not in self._unwritten:
                self._on_leave(self._held.pop(prefix))
