"""The worker's day: take, schedule, run, finish. Everything it decides, others decide for it.

Policy between training and sampling: after each training pass come up to
`sampling_steps_per_training_pass` sampling steps, so neither waits for more than one turn of the other.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from redis.exceptions import RedisError
from tinsmith.protocol.jobs import Job, Result, failure

from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.ops import Ops
from tinsmith_worker.queue import Fenced, Queue
from tinsmith_worker.runs import Resident, Runs
from tinsmith_worker.samples import SamplingDesk
from tinsmith_worker.scheduler import Scheduler
from tinsmith_worker.settings import Settings
from tinsmith_worker.store import Store

_log = structlog.get_logger()
_HOUSEKEEPING_SECONDS = 1.0


@dataclass(frozen=True)
class Home:
    """What this worker knows of a run that it is home to."""

    base_model: str
    epoch: int


class Worker:
    def __init__(
        self,
        settings: Settings,
        queue: Queue,
        store: Store,
        models: Mapping[str, BaseModel],
        desks: Mapping[str, SamplingDesk],
    ) -> None:
        self._settings, self._queue, self._models, self._desks = settings, queue, models, desks
        self._ops = Ops(store, settings.max_pass_tokens)
        self._scheduler = Scheduler(settings.max_pass_tokens)
        self._runs = Runs(
            queue,
            store,
            models,
            self._ops,
            max_resident=settings.max_resident_runs,
            snapshot_steps=settings.snapshot_steps,
            snapshot_log_bytes=settings.snapshot_log_bytes,
            is_busy=lambda run_id: run_id in self._scheduler.lines,
        )
        self._homes: dict[str, Home] = {}
        self._news: set[str] = set()
        self._gaps: dict[str, float] = {}
        self._housekept = 0.0
        self.stopping = False

    def run_forever(self) -> None:
        """Until `stopping` is set; Redis may come and go meanwhile."""
        while not self.stopping:
            try:
                self.turn()
            except RedisError as error:
                _log.warning("redis_unreachable", error=type(error).__name__)
                time.sleep(1.0)

    def turn(self) -> None:
        self._intake()
        trained = self._train()
        for _ in range(self._settings.sampling_steps_per_training_pass if trained else 1):
            for desk in self._desks.values():
                desk.step()

    def drain(self) -> None:
        """A planned stop: what is claimed is given back, what is done is snapshot."""
        try:
            self._runs.snapshot_all()
            self._queue.withdraw(self._models)
        except RedisError as error:  # whoever adopts the runs replays a little more
            _log.warning("left_without_goodbye", error=type(error).__name__)

    # Take

    def _intake(self) -> None:
        if self._busy:
            self._news |= self._queue.news()
        else:
            self._news |= self._queue.wait(self._models, _HOUSEKEEPING_SECONDS)
        self._housekeep()
        self._take()
        for desk in self._desks.values():
            desk.take()

    @property
    def _busy(self) -> bool:
        return bool(self._scheduler.lines) or any(desk.busy for desk in self._desks.values())

    def _take(self) -> None:
        if not self._news:
            return
        taken = self._queue.take(sorted(self._news), self._settings.max_pass_tokens)
        self._news = {line.run_id for line in taken if line.status == "more"}
        for line in taken:
            home = self._home(line.run_id, line.epoch)
            for job in line.jobs:
                self._scheduler.add(job, home.base_model)
            if line.status == "gap" and not line.jobs:
                self._gaps.setdefault(line.run_id, time.monotonic())
                self._close_gap_in_time(line.run_id, line.epoch)
            else:
                self._gaps.pop(line.run_id, None)

    def _home(self, run_id: str, epoch: int) -> Home:
        """Under a new epoch, what was claimed under an old one has been taken again."""
        home = self._homes.get(run_id)
        if home is None or home.epoch != epoch:
            self._scheduler.drop(run_id)
            home = self._homes[run_id] = Home(self._queue.record(run_id).base_model, epoch)
        return home

    def _housekeep(self) -> None:
        now = time.monotonic()
        if now - self._housekept < _HOUSEKEEPING_SECONDS:
            return
        self._housekept = now
        self._news |= self._queue.adopt_orphans(self._models) | self._gaps.keys()
        cancelled = self._queue.cancellations()
        for desk in self._desks.values():
            desk.rescue()
            desk.cancel(cancelled)

    def _close_gap_in_time(self, run_id: str, epoch: int) -> None:
        if time.monotonic() - self._gaps[run_id] < self._settings.gap_seconds:
            return
        seq_id = self._queue.record(run_id).done + 1
        waited = f"{self._settings.gap_seconds:g} s"
        missing = failure(f"seq_id: request {seq_id} of this run did not arrive within {waited}.")
        behind = failure(
            f"seq_id: request {seq_id} of this run did not arrive within {waited}, and this one, "
            "which waited behind it, was not run. Send both again under new numbers.",
            "server",
        )
        self._queue.close_gap(run_id, epoch, missing, behind)
        del self._gaps[run_id]

    # Schedule, run, finish

    def _train(self) -> bool:
        """Whether a pass was made. Ops that need none are all run first."""
        while batch := self._scheduler.next_batch():
            if batch[0].kind.needs_pass:
                self._run_pass(batch)
                return True
            self._run_one(batch[0])
        return False

    def _run_one(self, job: Job) -> None:
        if resident := self._resident(job):
            model = self._models[resident.base_model]
            try:
                resident.state, result = self._ops.run_one(model, resident.state, job)
            except Exception as error:  # noqa: BLE001 - one tenant's accident is not the worker's end
                result = self._accident(job, error)
            self._finish(job, resident, result)

    def _run_pass(self, jobs: list[Job]) -> None:
        ready = [(job, resident) for job in jobs if (resident := self._resident(job))]
        if not ready:
            return
        model = self._models[ready[0][1].base_model]
        try:
            results = self._ops.run_pass(
                model, [resident.state for _, resident in ready], [job for job, _ in ready]
            )
        except Exception as error:  # noqa: BLE001 - as above; nothing of a failed pass is kept
            results = [self._accident(job, error) for job, _ in ready]
        for (job, resident), result in zip(ready, results, strict=True):
            self._finish(job, resident, result)

    def _resident(self, job: Job) -> Resident | None:
        """The run's state; None when it could not be rebuilt, and the job has failed with that."""
        epoch = self._homes[job.run_id].epoch
        try:
            return self._runs.get(job.run_id, epoch)
        except RedisError:
            raise
        except Exception as error:  # noqa: BLE001 - a damaged run fails alone
            result = self._accident(job, error)
            self._hand_over(job, epoch, result)
            return None

    def _finish(self, job: Job, resident: Resident, result: Result) -> None:
        if self._hand_over(job, resident.epoch, result) and not result.failed:
            try:
                self._runs.finished(job, resident)
            except Fenced:
                self._let_go(job.run_id)

    def _hand_over(self, job: Job, epoch: int, result: Result) -> bool:
        try:
            self._queue.done(job, epoch, result)
        except Fenced:
            self._let_go(job.run_id)
            return False
        return True

    def _let_go(self, run_id: str) -> None:
        _log.warning("run_has_moved", run_id=run_id)
        self._runs.drop(run_id)
        self._scheduler.drop(run_id)
        self._homes.pop(run_id, None)

    def _accident(self, job: Job, error: Exception) -> Result:
        """An error that is nobody's input: logged whole, told as a reference.

        The op may have stopped halfway, so the run is rebuilt before its next one.
        """
        self._runs.drop(job.run_id)
        _log.error("op_failed", request_id=job.request_id, kind=job.kind, exc_info=error)
        return failure(
            f"Internal error in the worker (reference {job.request_id}). The run is unharmed.",
            "server",
        )
