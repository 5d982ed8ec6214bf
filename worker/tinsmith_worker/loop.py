"""The worker's day: take, schedule, run, finish. Everything it decides, others decide for it.

Training and sampling share the device by time: while both have work, sampling steps follow each
training pass until they have had `sampling_share` of the two. A pass and a step are the grain, so
neither waits for more than one of the other's turns.
"""

import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass

import structlog
from redis.exceptions import RedisError
from tinsmith.protocol.errors import TinsmithError
from tinsmith.protocol.jobs import Job, Kind, Result, failure
from tinsmith.protocol.object_store import OUT_OF_REACH

from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.training import Work
from tinsmith_worker.engine.values import InvalidInput
from tinsmith_worker.fetcher import Fetcher, OnItsWay
from tinsmith_worker.intake import Intake
from tinsmith_worker.ops import NEVER_CREATED, Ops, answer_of, logged
from tinsmith_worker.queue import Fenced, Queue
from tinsmith_worker.runs import Resident, Runs
from tinsmith_worker.samples import SamplingDesk
from tinsmith_worker.saver import Saver, Until
from tinsmith_worker.scheduler import Scheduler
from tinsmith_worker.settings import Settings
from tinsmith_worker.store import Store
from tinsmith_worker.teachers import Teachers

_log = structlog.get_logger()
_HOUSEKEEPING_SECONDS = 1.0
_AWAY_SECONDS = 1.0
_DRAIN_SECONDS = 10.0
_PASSES_IN_WORK = 4
"""How many passes' tokens are in work at once: enough to fill each pass, and no more to wait behind."""


@dataclass(frozen=True)
class _InWork:
    """A job that was begun and is not answered."""

    job: Job
    resident: Resident


class Worker:
    def __init__(
        self,
        settings: Settings,
        queue: Queue,
        store: Store,
        models: Mapping[str, BaseModel],
        desks: Mapping[str, SamplingDesk],
        teachers: Teachers | None = None,
    ) -> None:
        self._settings, self._queue, self._models, self._desks = settings, queue, models, desks
        self._saver, self._fetcher = Saver(store, queue.ring), Fetcher(store, queue.ring)
        weights = {name: desk.weights for name, desk in desks.items()}
        self._teachers = teachers or Teachers(store, models, weights)
        self._ops = Ops(
            self._saver,
            self._fetcher,
            weights,
            settings.max_pass_tokens,
            queue.point_slot,
            self._teachers,
        )
        self._trainers = {name: self._ops.trainer(model) for name, model in models.items()}
        self._scheduler = Scheduler(_PASSES_IN_WORK * settings.max_pass_tokens)
        self._runs = Runs(
            queue,
            store,
            self._saver,
            self._fetcher,
            models,
            self._ops,
            max_resident=settings.max_resident_runs,
            snapshot_steps=settings.snapshot_steps,
            snapshot_seconds=settings.snapshot_seconds,
            snapshot_log_bytes=settings.snapshot_log_bytes,
            is_busy=self._scheduler.busy_with,
        )
        self._intake = Intake(
            queue,
            self._scheduler,
            max_tokens=settings.max_pass_tokens,
            gap_seconds=settings.gap_seconds,
            on_new_epoch=self._forget,
        )
        self._training: dict[int, _InWork] = {}
        """By the identity of its work."""
        self._saving: list[tuple[_InWork, Future[Result]]] = []
        self._held: dict[str, list[Job]] = {}
        """By run: what was begun and waits for a folder of the store."""
        self._housekept = 0.0
        self._out_of_touch = False
        self.stopping = False
        self.asked_to_leave = False
        """By an operator: once it has stopped, it rests."""

    def keep(self, prefix: str, files: dict[str, bytes]) -> None:
        """Have them in the store, unless they are there; a store out of reach has them later."""
        self._saver.write(prefix, prefix, lambda: files, until=Until.WRITTEN, unless_there=True)

    def run_forever(self) -> None:
        """Until `stopping` is set; Redis may come and go meanwhile."""
        while not self.stopping:
            self.patient_turn()

    def patient_turn(self) -> None:
        try:
            self.turn()
        except RedisError as error:
            _log.warning("redis_unreachable", error=type(error).__name__)
            self._out_of_touch = True
            time.sleep(_AWAY_SECONDS)

    def stop(self) -> None:
        """May be called at any moment, from a signal's handler."""
        self.stopping = True
        self._queue.link.patient = False

    def turn(self) -> None:
        if self._out_of_touch:
            self._retake()
        self._take()
        self._begin()
        trained = self._train()
        self._sample(trained)
        self._finish_saves()

    def drain(self) -> None:
        """A planned stop, first half: what is in work is finished, what is done is snapshot.

        Our lease must outlast this, or others adopt the runs before their snapshots are recorded.
        """
        try:
            self._finish_work(time.monotonic() + _DRAIN_SECONDS)
            self._saver.close()
            self._finish_saves()
            self._runs.snapshot_all()
        except RedisError as error:  # whoever adopts the runs replays a little more
            _log.warning("drained_halfway", error=type(error).__name__)
        self._fetcher.close()
        for desk in self._desks.values():
            desk.weights.close()

    def _finish_work(self, deadline: float) -> None:
        """Nothing new begins. What takes longer than there is time for, another worker begins again."""
        while self._in_the_middle and time.monotonic() < deadline:
            self._sample(self._train())
            self._finish_saves()
        for one in self._training.values():  # its gradient has not joined its run's
            self._runs.given_up(one.job, one.resident)
        self._training.clear()

    @property
    def _in_the_middle(self) -> bool:
        return any(one.busy for one in self._trainers.values()) or any(
            desk.ready for desk in self._desks.values()
        )

    def leave(self) -> None:
        """A planned stop, second half: what is claimed is given back."""
        try:
            self._queue.withdraw(self._models)
        except RedisError as error:  # whoever adopts the runs replays a little more
            _log.warning("left_without_goodbye", error=type(error).__name__)

    # Take

    def _take(self) -> None:
        self._take_samples()  # before waiting: their bell may have rung for others only
        if self._computing or self._intake.takeable:  # of which TAKE has left some
            self._intake.hear(self._queue.news())
        elif self._housekept:
            self._intake.hear(self._queue.wait(self._models, _HOUSEKEEPING_SECONDS))
        self._housekeep()
        self._intake.take()
        self._take_samples()

    def _take_samples(self) -> None:
        for desk in self._desks.values():
            desk.go_on()
            desk.take()

    def _retake(self) -> None:
        """What we told or asked last may have been lost, or done without our hearing of it."""
        self._queue.announce_again()
        retaken = {one.run_id: one for one in self._queue.retake()}
        self._training.clear()
        self._saving.clear()
        self._held.clear()
        self._scheduler.clear()
        for trainer in self._trainers.values():
            trainer.clear()
        self._runs.retake(retaken)
        self._intake.retake(retaken)
        for desk in self._desks.values():
            desk.retake()
        self._out_of_touch = False

    def _heed_notices(self) -> None:
        notices = self._queue.notices()
        for desk in self._desks.values():
            desk.cancel(notices.cancelled)
        for run_id in notices.resting:
            if not self._scheduler.busy_with(run_id):
                self._runs.drop(run_id)
        for run_id in notices.ended:
            if self._intake.epoch_of(run_id) is not None:
                self._leave(run_id)

    @property
    def _computing(self) -> bool:
        return self._scheduler.can_begin or self._in_the_middle

    def _housekeep(self) -> None:
        self._heed_notices()
        now = time.monotonic()
        if now - self._housekept < _HOUSEKEEPING_SECONDS:
            return
        self._housekept = now
        if self._queue.asked_to_leave():
            self.asked_to_leave = True
            self.stop()
        self._queue.stay_announced()
        self._intake.hear(self._queue.adopt_orphans(self._models))
        self._intake.look_at_gaps()
        self._say_why()
        self._saver.try_again()
        self._fetcher.try_again()
        self._runs.settle_snapshots()
        self._runs.snapshot_old()
        self._teachers.dismiss_idle()
        for desk in self._desks.values():
            desk.rescue()
            desk.try_again()

    def _say_why(self) -> None:
        """To the polls of what waits for a store that is out of reach."""
        saving = {one.job.run_id for one, _ in self._saving}
        for run_id in filter(self._saver.out_of_reach, saving):
            self._queue.say_why(run_id, OUT_OF_REACH)
        for run_id in filter(self._fetcher.out_of_reach, self._held):
            self._queue.say_why(run_id, OUT_OF_REACH)

    # Schedule and run

    def _begin(self) -> None:
        """Run what needs no pass, as long as there is any, and hand the rest to the trainers."""
        self._resume()
        while jobs := self._scheduler.next_alone():
            ready = [one for job in jobs if (one := self._in_work(job))]
            self._step([one for one in ready if one.job.kind is Kind.OPTIM_STEP])
            for one in ready:
                if one.job.kind is not Kind.OPTIM_STEP:
                    self._run_alone(one)
        for job in self._scheduler.next_passes():
            if one := self._in_work(job):
                self._enter(one)

    def _resume(self) -> None:
        """What waited for the store, in the order it was begun."""
        for run_id in [one for one in self._held if self._fetcher.news_for(one)]:
            for job in self._held.pop(run_id, ()):
                if one := self._in_work(job):
                    self._start(one)

    def _start(self, one: _InWork) -> None:
        if one.job.kind is Kind.OPTIM_STEP:
            self._step([one])
        elif one.job.kind.needs_pass:
            self._enter(one)
        else:
            self._run_alone(one)

    def _hold(self, job: Job) -> None:
        """It waits for the store, and its run with it."""
        self._held.setdefault(job.run_id, []).append(job)

    def _in_work(self, job: Job) -> _InWork | None:
        """With the run's state; None when it is on its way, or the job has failed without it."""
        if job.run_id in self._held:
            self._hold(job)
            return None
        epoch = self._intake.epoch_of(job.run_id)
        if epoch is None:  # an earlier job of this round found that the run has moved
            self._scheduler.finished(job)
            return None
        try:
            resident = self._runs.get(job.run_id, epoch)
            self._runs.begun(job, resident)
            return _InWork(job, resident)
        except RedisError:
            raise
        except OnItsWay:
            self._hold(job)
            return None
        except Fenced:  # it has ended
            self._scheduler.finished(job)
            self._let_go(job.run_id)
            return None
        except Exception as error:  # noqa: BLE001 - a damaged run fails alone
            self._hand_over(job, epoch, self._accident(job, error))
            return None

    def _step(self, ready: list[_InWork]) -> None:
        if not ready:
            return
        jobs = [one.job for one in ready]
        try:
            results = self._ops.run_steps([one.resident.state for one in ready], jobs)
        except Exception as error:  # noqa: BLE001 - one tenant's accident is not the worker's end
            results = [self._accident(job, error) for job in jobs]
        for one, result in zip(ready, results, strict=True):
            self._finish(one, result)

    def _run_alone(self, one: _InWork) -> None:
        model = self._models[one.resident.base_model]
        result: Result | Future[Result]
        try:
            one.resident.state, result = self._ops.run_one(model, one.resident.state, one.job)
        except OnItsWay:
            self._runs.given_up(one.job, one.resident)
            self._hold(one.job)
            return
        except Exception as error:  # noqa: BLE001 - as above
            result = self._accident(one.job, error)
        if isinstance(result, Result):
            self._finish(one, result)
        else:
            self._saving.append((one, result))

    def _enter(self, one: _InWork) -> None:
        state = one.resident.state
        if state is None:
            self._finish(one, failure(NEVER_CREATED))
            return
        trainer = self._trainers[one.resident.base_model]
        try:
            model = self._models[one.resident.base_model]
            work = self._ops.work_of(model, state, one.job)
        except (InvalidInput, TinsmithError) as error:
            work = Work(run=state, data=[], loss_fn="", loss_fn_config={})
            trainer.refuse(work, str(error))
        except OnItsWay:  # of a teacher
            self._runs.given_up(one.job, one.resident)
            self._hold(one.job)
            return
        else:
            trainer.add(work, first=self._scheduler.is_newcomer(one.job))
        self._training[id(work)] = one

    def _train(self) -> float:
        """A pass of each base model that has work; answers the seconds it took."""
        began = time.monotonic()
        for trainer in self._trainers.values():
            if trainer.busy:
                try:
                    settled = trainer.step()
                except Exception as error:  # noqa: BLE001 - nothing of a failed pass is kept
                    self._fail_all(trainer.clear(), error)
                    continue
                for work, outcome in settled:
                    if one := self._training.pop(id(work), None):  # or its run has just moved
                        self._finish(one, answer_of(work, outcome))
        return time.monotonic() - began

    def _fail_all(self, works: list[Work], error: Exception) -> None:
        for work in works:
            if one := self._training.pop(id(work), None):
                self._finish(one, self._accident(one.job, error))

    def _sample(self, trained_seconds: float) -> None:
        """Steps until sampling has had its share of the time; one where nothing trains."""
        share = self._settings.sampling_share
        room = trained_seconds * share / (1 - share)
        began = time.monotonic()
        while ready := [desk for desk in self._desks.values() if desk.ready]:
            for desk in ready:
                desk.step()
            if time.monotonic() - began >= room:
                return
            self._heed_notices()
            self._take_samples()

    def _finish_saves(self) -> None:
        still = []
        for one, answer in self._saving:
            if answer.done():
                self._finish(one, answer.result())
            else:
                still.append((one, answer))
        self._saving = still

    # Finish

    def _finish(self, one: _InWork, result: Result) -> None:
        if not self._hand_over(one.job, one.resident.epoch, result):
            return
        self._runs.answered(one.job, one.resident)
        if not result.failed:
            try:
                self._runs.finished(one.job, one.resident)
            except Fenced:
                self._let_go(one.job.run_id)

    def _hand_over(self, job: Job, epoch: int, result: Result) -> bool:
        """Whether the run is still ours."""
        self._scheduler.finished(job)
        self._fetcher.forget(job.run_id)
        try:
            self._queue.done(job, epoch, result, logged=logged(job) and not result.failed)
        except Fenced:
            self._let_go(job.run_id)
            return False
        return True

    def _let_go(self, run_id: str) -> None:
        """Another worker is its home by now, or it has ended and the notice is on its way."""
        _log.info("run_has_moved", run_id=run_id)
        self._leave(run_id)

    def _leave(self, run_id: str) -> None:
        self._forget(run_id)
        self._runs.leave(run_id)
        self._intake.leave(run_id)

    def _forget(self, run_id: str) -> None:
        """Its state here is history, and so is what was begun on it."""
        self._runs.drop(run_id)
        for key, one in list(self._training.items()):
            if one.job.run_id == run_id:
                del self._training[key]
                self._scheduler.finished(one.job)
                if one.resident.state is not None:
                    self._trainers[one.resident.base_model].abandon(one.resident.state)
        for one, answer in list(self._saving):
            if one.job.run_id == run_id:
                self._saving.remove((one, answer))
                self._scheduler.finished(one.job)
        for job in self._held.pop(run_id, ()):
            self._scheduler.finished(job)
        self._scheduler.drop(run_id)

    def _accident(self, job: Job, error: Exception) -> Result:
        """An error that is nobody's input: logged whole, told as a reference.

        The op may have stopped halfway, so the run is rebuilt before its next one.
        """
        self._runs.drop(job.run_id)
        _log.error(
            "op_failed",
            request_id=job.request_id,
            http_request_id=job.origin.http_request_id,
            kind=job.kind,
            exc_info=error,
        )
        return failure(
            f"Internal error in the worker (reference {job.request_id}). The run is unharmed.",
            "server",
        )
