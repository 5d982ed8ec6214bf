"""The worker's end of the queue: take, finish, snapshot, adopt. Synchronous: one thread, one Redis.

Only `Lease` runs in a thread of its own, because a forward pass may outlast a lease.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import structlog
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisAway
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisSilent
from redis.retry import Retry
from tinsmith.protocol import keys
from tinsmith.protocol.jobs import DrawnToken, Job, Kind, ModelCard, Result
from tinsmith.protocol.origin import NOBODY, Origin
from tinsmith.protocol.provenance import RECORD_SECONDS, Recorded
from tinsmith.protocol.scripts import script

from tinsmith_worker.usage import sample_usage

_log = structlog.get_logger()
RESULT_TTL_MS = 6 * 3600 * 1000
_WHY_SECONDS = 10
_DRAIN_SECONDS = 24 * 3600
_RUNG_SECONDS = 3600
_PATIENCE_SECONDS = 0.5
_TURN_TOKENS = 1024
"""Of sampling, that a tenant may take before it is the next one's turn."""
_TOLD_STEPS, _TOLD_SECONDS = 4096, 3600
_SCRIPTS = Path(__file__).parent / "scripts"
_PARTS = {
    "take": ("take",),
    "done": ("release", "finished", "done"),
    "snap": ("snap",),
    "adopt": ("adopt",),
    "retake": ("retake",),
    "close_gap": ("release", "close_gap"),
    "take_samples": ("take_samples",),
    "rescue_samples": ("rescue_samples",),
    "sample_done": ("release", "finished", "sample_done"),
    "point_slot": ("point_slot",),
}
T = TypeVar("T")
_FULL = ("MISCONF", "OOM")
"""How Redis begins to say that its disk or its memory is full."""


class Fenced(Exception):
    """The run has another home by now: what this worker did with it no longer counts."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    run_id: str
    epoch: int
    status: str
    organization: str
    base_model: str
    last: int
    """The seq up to which this worker has now taken the run."""
    jobs: list[Job] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Retaken:
    run_id: str
    epoch: int
    done: int


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What Redis knows of a run: where its recovery starts."""

    base_model: str
    epoch: int
    done: int
    snapshot: str
    snapshot_seq: int


@dataclass(frozen=True)
class SampleTicket:
    """A sampling job that this worker has taken."""

    base_model: str
    request_id: str
    body: bytes
    origin: Origin = NOBODY
    submitted_us: int = 0


@dataclass(frozen=True)
class Notices:
    """Sampling jobs that are cancelled; runs that need no memory now; runs that have ended."""

    cancelled: set[str]
    resting: set[str]
    ended: set[str]


class Queue:
    def __init__(self, redis_url: str, worker: str) -> None:
        # Its stubs mix the sync and async answers. It may not try again by itself: whether an answer
        # was lost must be known here, for what a list has given is gone from it.
        self.redis: Any = Redis.from_url(redis_url, retry=Retry(NoBackoff(), 0))
        self.worker = worker
        self.patient = True
        """Whether a result waits for a Redis that is away; false once the worker is to stop."""
        self._ctl_last = "0"
        self._cards: list[ModelCard] = []
        for name, parts in _PARTS.items():
            setattr(self, f"_{name}", self.redis.register_script(script(_SCRIPTS, *parts)))

    def _run(self, script: str, *args: object) -> Any:
        return getattr(self, f"_{script}")(keys=[], args=list(args))

    def _tell(self, script: str, *args: object) -> Any:
        """A result is computed once, and telling it again changes nothing."""
        return self._patiently(lambda: self._run(script, *args))

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Until Redis answers; for what may be asked twice, in the middle of work."""
        while True:
            try:
                return ask()
            except RedisError as error:
                if not (self.patient and _will_pass(error)):
                    raise
                _log.warning("work_waits_for_redis", error=type(error).__name__)
                time.sleep(_PATIENCE_SECONDS)

    # Presence

    def announce(self, cards: Iterable[ModelCard]) -> None:
        """Say which base models this worker holds. The lease must already be there."""
        entries = self.redis.xrevrange(keys.CTL, count=1)
        self._ctl_last = entries[0][0].decode() if entries else "0"
        self._cards = list(cards)
        self.announce_again()

    def stay_announced(self) -> None:
        """Whoever adopted our runs while we were silent took us for dead."""
        for card in self._cards:
            self.redis.zadd(keys.workers(card.name), {self.worker: 0}, nx=True)

    def announce_again(self) -> None:
        """To a Redis that may have forgotten everything."""
        self.stay_announced()
        for card in self._cards:
            self.redis.set(keys.model(card.name), msgspec.json.encode(card))
            self.redis.sadd(keys.MODELS, card.name)

    def withdraw(self, base_models: Iterable[str]) -> None:
        """Take no new run; the runs that are here wait for whoever adopts them."""
        self._give_runs_back()
        for base_model in base_models:
            self.redis.zrem(keys.workers(base_model), self.worker)
        self._give_runs_back()  # one may have begun meanwhile; from now on none does
        self.redis.delete(keys.lease(self.worker))

    def _give_runs_back(self) -> None:
        mine = keys.owned(self.worker)
        for run_id in self._members(mine):
            self.redis.smove(mine, keys.owned(keys.homeless(self._base_of(run_id))), run_id)

    def asked_to_leave(self) -> bool:
        return bool(self.redis.exists(keys.drain(self.worker)))

    def rests(self) -> bool:
        """Say that this worker has left and is still there; False once it is taken back."""
        seconds, _ = self.redis.time()
        self.redis.zadd(keys.DRAINED, {self.worker: seconds})
        if self.redis.expire(keys.drain(self.worker), _DRAIN_SECONDS):
            return True
        self.rest_is_over()
        return False

    def rest_is_over(self) -> None:
        self.redis.zrem(keys.DRAINED, self.worker)
        self.redis.delete(keys.drain(self.worker))

    # Training ops

    def wait(self, base_models: Iterable[str], timeout_seconds: float) -> set[str]:
        """Ids of runs with news; blocks until something rings or the time is up."""
        bells = [f"bell:{name}" for name in base_models]
        inbox = keys.inbox(self.worker)
        rung = self.redis.blpop([inbox, *bells], timeout=timeout_seconds)
        first = {rung[1].decode()} if rung and rung[0].decode() == inbox else set()
        return first | self.news()

    def news(self) -> set[str]:
        """The same without waiting."""
        names = self.redis.lpop(keys.inbox(self.worker), 1000)
        return {name.decode() for name in names or ()}

    def take(self, taken: Mapping[str, tuple[int, int]], max_tokens: int) -> list[Taken]:
        """The next ops of each run, up to so many tokens of each.

        `taken`: the epoch and the last seq that this worker has taken of it; (0, -1) of a new one.
        """
        args = [value for run_id, at in taken.items() for value in (run_id, *at)]
        return [_taken(row) for row in self._run("take", self.worker, max_tokens, *args)]

    def homed(self) -> set[str]:
        """Every run that this worker is home to."""
        return set(self._members(keys.owned(self.worker)))

    def retake(self) -> list[Retaken]:
        """Every run of ours under a new epoch; what was claimed of it waits again."""
        return [
            Retaken(run_id=run_id.decode(), epoch=epoch, done=done)
            for run_id, epoch, done in self._run("retake", self.worker)
        ]

    def ring(self, run_id: str) -> None:
        """Wake this worker's loop, which looks by itself once a second; from any thread."""
        with contextlib.suppress(RedisError):
            pipe = self.redis.pipeline(transaction=False)
            pipe.rpush(keys.inbox(self.worker), run_id)
            pipe.expire(keys.inbox(self.worker), _RUNG_SECONDS)  # should we die before we hear it
            pipe.execute()

    def say_why(self, name: str, why: str) -> None:
        """What a run, or a sample, waits for; said again for as long as it does."""
        self.redis.set(keys.waits(name), why, ex=_WHY_SECONDS)

    def done(self, job: Job, epoch: int, result: Result, *, logged: bool | None = None) -> None:
        """Hand over a result; raises Fenced when the run has moved.

        `logged`: a replay of the run must repeat the op. None: as its kind says.
        """
        if logged is None:
            logged = job.kind.changes_state and not result.failed
        answer = self._tell(
            "done",
            self.worker,
            epoch,
            job.run_id,
            job.seq_id,
            job.request_id,
            job.kind,
            int(logged),
            int(result.failed),
            result.content,
            result.data,
            RESULT_TTL_MS,
            result.figures,
        )
        if answer == b"fenced":
            raise Fenced(job.run_id)

    def snapshot_taken(self, run_id: str, epoch: int, snapshot: str, seq_id: int) -> str:
        """Record a snapshot; answers the one that it replaces."""
        answer = self._tell("snap", self.worker, epoch, run_id, snapshot, seq_id)
        if answer is None:
            raise Fenced(run_id)
        return cast(bytes, answer).decode()

    def point_slot(self, run_id: str, seq_id: int, folder: str) -> None:
        """The folder that the run's inflight samplers use from now on, unless a later op was first."""
        self._tell("point_slot", run_id, seq_id, folder)

    def close_gap(self, run_id: str, epoch: int, missing: Result, behind: Result) -> int:
        args = (self.worker, epoch, run_id, missing.data, behind.data, RESULT_TTL_MS)
        return cast(int, self._tell("close_gap", *args))

    # Recovery

    def record(self, run_id: str) -> RunRecord:
        fields = ("base_model", "epoch", "done", "snapshot", "snapshot_seq")
        values = self._patiently(lambda: self.redis.hmget(keys.run(run_id), list(fields)))
        if values[0] is None:
            raise Fenced(run_id)  # it has ended
        base_model, epoch, done, snapshot, snapshot_seq = (value.decode() for value in values)
        return RunRecord(
            base_model=base_model,
            epoch=int(epoch),
            done=int(done),
            snapshot=snapshot,
            snapshot_seq=int(snapshot_seq),
        )

    def replay_log(self, run_id: str) -> list[Job]:
        """The ops since the last snapshot that changed the run, in order, with their bodies."""
        entries = self._patiently(lambda: self.redis.lrange(keys.log(run_id), 0, -1))
        jobs = []
        for entry in entries:
            request_id, kind = entry.decode().split(" ")
            body = self._patiently(partial(self.redis.get, keys.payload(request_id)))
            jobs.append(
                Job(
                    request_id=request_id,
                    run_id=run_id,
                    seq_id=int(request_id.rsplit(":", 1)[1]),
                    kind=Kind(kind),
                    body=body or b"",
                )
            )
        return jobs

    def adopt_orphans(self, base_models: Iterable[str]) -> set[str]:
        """Take in every run of these base models whose home has lost its lease."""
        adopted = set()
        for base_model in base_models:
            for home in [keys.homeless(base_model), *self._dead_workers(base_model)]:
                for run_id in self._members(keys.owned(home)):
                    if self._base_of(run_id) == base_model and self._run(
                        "adopt", self.worker, run_id
                    ):
                        adopted.add(run_id)
                if home != keys.homeless(base_model):
                    self.redis.zrem(keys.workers(base_model), home)
        return adopted

    def _dead_workers(self, base_model: str) -> list[str]:
        return [
            name
            for name in self._members_by_score(keys.workers(base_model))
            if name != self.worker and not self.redis.exists(keys.lease(name))
        ]

    # Sampling

    def take_samples(self, base_model: str, count: int) -> list[SampleTicket]:
        """The next sampling jobs, tenants taking turns."""
        flat = self._run("take_samples", self.worker, base_model, count, _TURN_TOKENS)
        return [
            SampleTicket(base_model, request.decode(), body, _origin(origin), int(at))
            for request, body, origin, at in zip(*[iter(flat)] * 4, strict=True)
        ]

    def retake_samples(self, base_model: str) -> list[SampleTicket]:
        """Everything that was handed to us and has no result yet, whether or not we heard of it."""
        tickets = []
        for request_id in self._members(keys.held(self.worker, base_model)):
            body = cast(bytes | None, self.redis.get(keys.payload(request_id)))
            if body is None:  # cancelled
                self.redis.srem(keys.held(self.worker, base_model), request_id)
            else:
                origin, at = self.redis.hmget(keys.future(request_id), ["origin", "at"])
                ticket = SampleTicket(base_model, request_id, body, _origin(origin), int(at or 0))
                tickets.append(ticket)
        return tickets

    def rescue_samples(self, base_model: str) -> int:
        """Let what dead workers held wait again; answers how many that were."""
        return cast(int, self._run("rescue_samples", base_model))

    def keep_sequences(self, records: Mapping[str, Recorded]) -> None:
        """For a day, by sequence id."""

        def keep() -> None:
            pipe = self.redis.pipeline(transaction=False)
            for name, record in records.items():
                pipe.set(keys.sequence(name), msgspec.msgpack.encode(record), ex=RECORD_SECONDS)
            pipe.execute()

        self._patiently(keep)

    def tell_tokens(self, by_process: Mapping[str, Sequence[DrawnToken]]) -> None:
        """To the API processes that stream them. What gets lost comes once more with the result."""
        pipe = self.redis.pipeline(transaction=False)
        for process, drawn in by_process.items():
            data = {"drawn": msgspec.msgpack.encode(drawn)}
            pipe.xadd(keys.tokens(process), data, maxlen=_TOLD_STEPS, approximate=True)
            pipe.expire(keys.tokens(process), _TOLD_SECONDS)
        try:
            pipe.execute()
        except RedisError as error:  # no reason to lose the step's results, which wait for Redis
            _log.warning("tokens_not_told", error=type(error).__name__)

    def sample_done(self, ticket: SampleTicket, result: Result) -> None:
        used = sample_usage(ticket.body, result)
        self._tell(
            "sample_done",
            self.worker,
            ticket.base_model,
            ticket.request_id,
            int(result.failed),
            result.content,
            result.data,
            RESULT_TTL_MS,
            used.prefill,
            used.cached,
            used.sampled,
        )

    def notices(self) -> Notices:
        """What was announced on `ctl` since the last look."""
        answer = self.redis.xread({keys.CTL: self._ctl_last}, count=1000)
        found: dict[bytes, set[str]] = {b"cancel": set(), b"rest": set(), b"leave": set()}
        for entry_id, fields in _entries(answer):
            self._ctl_last = entry_id.decode()
            for what in found.keys() & fields.keys():
                found[what].add(fields[what].decode())
        return Notices(found[b"cancel"], found[b"rest"], found[b"leave"])

    def _base_of(self, run_id: str) -> str:
        value = cast(bytes | None, self.redis.hget(keys.run(run_id), "base_model"))
        return value.decode() if value else ""

    def _members(self, key: str) -> list[str]:
        return sorted(name.decode() for name in self.redis.smembers(key))

    def _members_by_score(self, key: str) -> list[str]:
        return [name.decode() for name in self.redis.zrange(key, 0, -1)]


class Lease:
    """Says `this worker lives` to Redis, and what it takes, from a thread, three times a lease."""

    def __init__(
        self,
        redis_url: str,
        worker: str,
        seconds: float,
        on_error: Callable[[str], None],
        vitals: Callable[[], Mapping[str, float]],
    ) -> None:
        self._redis = Redis.from_url(redis_url)
        self._key, self._vitals_key = keys.lease(worker), keys.vitals(worker)
        self._vitals = vitals
        self._seconds = seconds
        self._on_error = on_error
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def start(self) -> None:
        self._redis.set(self._key, b"1", px=int(self._seconds * 1000))
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._redis.close()

    def _renew(self) -> None:
        stopped = False
        while not stopped:
            try:
                self._redis.set(self._key, b"1", px=int(self._seconds * 1000))
                self._tell_vitals()
            except RedisError as error:
                self._on_error(type(error).__name__)
            stopped = self._stop.wait(self._seconds / 3)

    def _tell_vitals(self) -> None:
        told = {name: f"{value:.12g}" for name, value in self._vitals().items()}
        self._redis.hset(self._vitals_key, mapping=cast(Any, told))
        self._redis.pexpire(self._vitals_key, int(self._seconds * 3000))


def _will_pass(error: RedisError) -> bool:
    """Away, starting, or full: a matter of waiting."""
    return isinstance(error, RedisAway | RedisSilent) or str(error).startswith(_FULL)


def _taken(row: Any) -> Taken:
    run_id, epoch, status, organization, base_model, last, flat = row
    jobs = [
        Job(
            request_id=request.decode(),
            run_id=run_id.decode(),
            seq_id=int(seq),
            kind=Kind(kind.decode()),
            num_tokens=int(tokens),
            body=body,
            origin=_origin(origin),
            submitted_us=int(at),
        )
        for request, seq, kind, tokens, body, origin, at in zip(*[iter(flat)] * 7, strict=True)
    ]
    return Taken(
        run_id=run_id.decode(),
        epoch=int(epoch),
        status=status.decode(),
        organization=organization.decode(),
        base_model=base_model.decode(),
        last=int(last),
        jobs=jobs,
    )


def _origin(told: bytes | None) -> Origin:
    return Origin.parse((told or b"").decode())


def _entries(answer: Any) -> list[tuple[bytes, Any]]:
    """Entries of the one stream asked for: a list of pairs under RESP2, a dict under RESP3."""
    if isinstance(answer, dict):
        return [entry for batches in answer.values() for batch in batches for entry in batch]
    return [entry for _, entries in answer or [] for entry in entries]
