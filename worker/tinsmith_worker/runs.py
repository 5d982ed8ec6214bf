"""The runs that live in this worker: their state in memory, and how it is rebuilt when it is not.

State of a run = its last snapshot + the ops of its log, replayed in order. So a run may be dropped
from memory at any moment, by eviction or by death, and nothing that a client was told is lost.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

import structlog
from tinsmith.protocol.jobs import Job, Kind
from tinsmith.protocol.store_layout import snapshot_prefix

from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.optimizer import RunState
from tinsmith_worker.fetcher import Fetcher
from tinsmith_worker.ops import Ops, restore_snapshot, snapshot_files
from tinsmith_worker.queue import Fenced, Queue, Retaken
from tinsmith_worker.saver import Saver
from tinsmith_worker.store import Store, StoreUnavailable

_log = structlog.get_logger()


@dataclass
class Resident:
    """A run in memory. `state` is None until its create or load op has run."""

    base_model: str
    epoch: int
    state: RunState | None
    done_seq: int = -1
    """The last op whose result Redis has."""
    unanswered: int = 0
    """Ops that may have changed `state` and whose results it may not have."""
    steps_since_snapshot: int = 0
    log_bytes: int = 0
    logged_since: float | None = None
    """When the first op was done that no snapshot covers."""

    @property
    def can_be_snapshot(self) -> bool:
        """A gradient is not part of a snapshot: the run's log holds it until its step."""
        return self.state is not None and not self.state.has_gradient and not self.unanswered


@dataclass(frozen=True)
class _Snapshot:
    """One on its way to the store."""

    resident: Resident
    prefix: str
    seq_id: int
    written: "Future[int]"


class Runs:
    def __init__(
        self,
        queue: Queue,
        store: Store,
        saver: Saver,
        fetcher: Fetcher,
        models: Mapping[str, BaseModel],
        ops: Ops,
        *,
        max_resident: int,
        snapshot_steps: int,
        snapshot_seconds: float,
        snapshot_log_bytes: int,
        is_busy: Callable[[str], bool],
    ) -> None:
        self._queue, self._store, self._models, self._ops = queue, store, models, ops
        self._saver, self._fetcher = saver, fetcher
        self._snapshots: dict[str, _Snapshot] = {}
        self._superseded: dict[str, str] = {}
        """The snapshot before the last, by run."""
        self._max_resident = max_resident
        self._snapshot_steps = snapshot_steps
        self._snapshot_seconds = snapshot_seconds
        self._snapshot_log_bytes = snapshot_log_bytes
        self._is_busy = is_busy
        self._resident: OrderedDict[str, Resident] = OrderedDict()

    def get(self, run_id: str, epoch: int) -> Resident:
        """The run as of its last finished op, from memory or rebuilt."""
        resident = self._resident.get(run_id)
        if resident is None or resident.epoch != epoch:
            resident = self._rebuild(run_id, epoch)
            self._resident[run_id] = resident
            self._evict(keep=run_id)
        self._resident.move_to_end(run_id)
        return resident

    def drop(self, run_id: str) -> None:
        self._resident.pop(run_id, None)

    def leave(self, run_id: str) -> None:
        """It has ended, or lives elsewhere: nothing about it is needed here any more."""
        self.drop(run_id)
        self._superseded.pop(run_id, None)

    def retake(self, retaken: Mapping[str, Retaken]) -> None:
        """Keep, under its new epoch, what is as Redis knows it; a Redis may also have gone back."""
        for run_id, resident in list(self._resident.items()):
            one = retaken.get(run_id)
            if one and not resident.unanswered and resident.done_seq <= one.done:
                resident.epoch = one.epoch
            else:
                self.drop(run_id)

    def begun(self, job: Job, resident: Resident) -> None:
        resident.unanswered += job.kind.changes_state

    def given_up(self, job: Job, resident: Resident) -> None:
        """It has not touched `state`, and will be begun again."""
        resident.unanswered -= job.kind.changes_state

    def answered(self, job: Job, resident: Resident) -> None:
        resident.unanswered -= job.kind.changes_state
        resident.done_seq = max(resident.done_seq, job.seq_id)

    def finished(self, job: Job, resident: Resident) -> None:
        """Count what a recovery would have to replay, and snapshot when it is too much."""
        if not job.kind.changes_state:
            return
        resident.log_bytes += len(job.body)
        resident.steps_since_snapshot += job.kind is Kind.OPTIM_STEP
        resident.logged_since = resident.logged_since or time.monotonic()
        due = (
            job.kind is Kind.LOAD_WEIGHTS  # the checkpoint it came from may be deleted
            or resident.steps_since_snapshot >= self._snapshot_steps
            or resident.log_bytes >= self._snapshot_log_bytes
            or self._is_old(resident)
        )
        if due:
            self._begin_snapshot(job.run_id, resident)

    def snapshot_old(self) -> None:
        """Of idle runs whose ops no snapshot covers for longer than that may be."""
        for run_id, resident in self._resident.items():
            if self._is_old(resident) and not self._is_busy(run_id):
                self._begin_snapshot(run_id, resident)

    def _is_old(self, resident: Resident) -> bool:
        since = resident.logged_since
        return since is not None and time.monotonic() - since >= self._snapshot_seconds

    def _begin_snapshot(self, run_id: str, resident: Resident) -> None:
        """Copy now, write beside the loop. A save on its way first: the log must outlive it."""
        if run_id in self._snapshots or self._saver.writes_for(run_id):
            return
        if not resident.can_be_snapshot:
            return
        assert resident.state is not None
        seq_id = resident.done_seq
        copy, base_model = resident.state.copied(), resident.base_model
        prefix = snapshot_prefix(run_id, resident.epoch, seq_id)
        written = self._saver.write(run_id, prefix, lambda: snapshot_files(copy, base_model))
        self._snapshots[run_id] = _Snapshot(resident, prefix, seq_id, written)
        resident.steps_since_snapshot = resident.log_bytes = 0
        resident.logged_since = None

    def settle_snapshots(self) -> None:
        """Record those that the store has taken."""
        for run_id, one in list(self._snapshots.items()):
            if not one.written.done():
                continue
            del self._snapshots[run_id]
            if error := one.written.exception():  # the log still holds everything
                _log.error("snapshot_failed", run_id=run_id, exc_info=error)
                one.resident.logged_since = time.monotonic()
                continue
            try:
                self._record(run_id, one.resident.epoch, one.prefix, one.seq_id)
            except Fenced:
                _log.info("run_has_moved", run_id=run_id)

    def snapshot_all(self) -> None:
        """Before a planned stop, so that whoever adopts the runs need not replay.

        Nothing may be on its way to the store any more.
        """
        self.settle_snapshots()
        for run_id, resident in self._resident.items():
            state = resident.state
            if state is None or not resident.can_be_snapshot or resident.logged_since is None:
                continue
            if self._saver.writes_for(run_id):  # a save that failed: only the log has it
                continue
            try:
                seq_id = self._queue.record(run_id).done
                prefix = snapshot_prefix(run_id, resident.epoch, seq_id)
                self._store.write_folder(prefix, snapshot_files(state, resident.base_model))
                self._record(run_id, resident.epoch, prefix, seq_id)
            except Fenced:
                _log.info("run_has_moved", run_id=run_id)
            except StoreUnavailable as error:  # the other logs hold everything, too
                _log.error("snapshot_failed", run_id=run_id, exc_info=error)
                return

    def _record(self, run_id: str, epoch: int, prefix: str, seq_id: int) -> None:
        """And delete the last but one: a Redis that loses its last second points to the last."""
        last = self._queue.snapshot_taken(run_id, epoch, prefix, seq_id)
        if not last or last == prefix:
            return
        last_but_one = self._superseded.get(run_id)
        self._superseded[run_id] = last
        if last_but_one is not None:
            self._saver.delete(last_but_one)

    def _rebuild(self, run_id: str, epoch: int) -> Resident:
        record = self._queue.record(run_id)
        model = self._models[record.base_model]
        resident = Resident(record.base_model, epoch, None, done_seq=record.done)
        if record.snapshot:
            files = self._fetcher.files(run_id, record.snapshot)
            resident.state = restore_snapshot(model, files)
        jobs = self._queue.replay_log(run_id)
        for job in jobs:
            resident.state = self._ops.replay(model, resident.state, job)
            resident.log_bytes += len(job.body)
            resident.steps_since_snapshot += job.kind is Kind.OPTIM_STEP
            resident.logged_since = resident.logged_since or time.monotonic()
        if record.snapshot or jobs:
            _log.info("run_rebuilt", run_id=run_id, snapshot=record.snapshot, replayed=len(jobs))
        return resident

    def _evict(self, keep: str) -> None:
        """The longest idle run leaves; its snapshot, and what its log still holds, bring it back."""
        for run_id, resident in list(self._resident.items()):
            if len(self._resident) <= self._max_resident:
                return
            if run_id != keep and not self._is_busy(run_id):
                if resident.logged_since is not None:
                    self._begin_snapshot(run_id, resident)
                del self._resident[run_id]
