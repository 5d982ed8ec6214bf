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
    ) -> None:
        self._store, self._model, self._max_held, self._on_leave = store, model, max_held, on_leave
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
        """None while the folder may still be on its way; NotThere once it has had its time."""
        if prefix not in self._held:
            try:
                files = self._store.read_folder(prefix)
            except FolderDamaged:
                if self._may_still_come(prefix):
                    return None
                raise NotThere(prefix) from None
            self._missing_since.pop(prefix, None)
            self._held[prefix] = checkpoint_files.unpack_adapter(self._model, files)
            self._trim()
        self._held.move_to_end(prefix)
        return self._held[prefix]

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
