"""The worker's end of the queue: take, finish, snapshot, adopt. Its sampling half is `sample_queue.py`."""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import msgspec
from redis.exceptions import RedisError
from tinsmith.protocol import keys
from tinsmith.protocol.jobs import Job, Kind, ModelCard, Result

from tinsmith_worker.lease import Watch
from tinsmith_worker.link import Link
from tinsmith_worker.sample_queue import RESULT_TTL_MS, SampleQueue, told_origin

_DRAIN_SECONDS = 24 * 3600
_RUNG_SECONDS = 3600
_WHY_SECONDS = 10
GONE_SECONDS = 1.5
"""So long may a worker's connection be gone before it counts as dead, at a lease of 5 s."""


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
class Notices:
    """Sampling jobs that are cancelled; runs that need no memory now; runs that have ended."""

    cancelled: set[str]
    resting: set[str]
    ended: set[str]


class Queue:
    def __init__(self, redis_url: str, worker: str, gone_seconds: float = GONE_SECONDS) -> None:
        self.link = Link(redis_url)
        self.redis, self.worker = self.link.redis, worker
        self.samples = SampleQueue(self.link, worker)
        self._watch = Watch(self.link, gone_seconds)
        self._ctl_last = "0"
        self._cards: list[ModelCard] = []

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
        for run_id in self.link.members(mine):
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
        return [_taken(row) for row in self.link.run("take", self.worker, max_tokens, *args)]

    def homed(self) -> set[str]:
        """Every run that this worker is home to."""
        return set(self.link.members(keys.owned(self.worker)))

    def retake(self) -> list[Retaken]:
        """Every run of ours under a new epoch; what was claimed of it waits again."""
        return [
            Retaken(run_id=run_id.decode(), epoch=epoch, done=done)
            for run_id, epoch, done in self.link.run("retake", self.worker)
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
        answer = self.link.tell(
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
        answer = self.link.tell("snap", self.worker, epoch, run_id, snapshot, seq_id)
        if answer is None:
            raise Fenced(run_id)
        return cast(bytes, answer).decode()

    def point_slot(self, run_id: str, seq_id: int, folder: str) -> None:
        """The folder that the run's inflight samplers use from now on, unless a later op was first."""
        self.link.tell("point_slot", run_id, seq_id, folder)

    def close_gap(self, run_id: str, epoch: int, missing: Result, behind: Result) -> int:
        args = (self.worker, epoch, run_id, missing.data, behind.data, RESULT_TTL_MS)
        return cast(int, self.link.tell("close_gap", *args))

    # Recovery

    def record(self, run_id: str) -> RunRecord:
        fields = ("base_model", "epoch", "done", "snapshot", "snapshot_seq")
        values = self.link.patiently(lambda: self.redis.hmget(keys.run(run_id), list(fields)))
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
        entries = self.link.patiently(lambda: self.redis.lrange(keys.log(run_id), 0, -1))
        jobs = []
        for entry in entries:
            request_id, kind = entry.decode().split(" ")
            body = self.link.patiently(partial(self.redis.get, keys.payload(request_id)))
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
                for run_id in self.link.members(keys.owned(home)):
                    if self._base_of(run_id) == base_model and self.link.run(
                        "adopt", self.worker, run_id
                    ):
                        adopted.add(run_id)
                if home != keys.homeless(base_model):
                    self.redis.zrem(keys.workers(base_model), home)
        return adopted

    def _dead_workers(self, base_model: str) -> list[str]:
        others = [
            name for name in self._members_by_score(keys.workers(base_model)) if name != self.worker
        ]
        self._watch.look(others)
        return [name for name in others if not self.redis.exists(keys.lease(name))]

    # What is announced

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

    def _members_by_score(self, key: str) -> list[str]:
        return [name.decode() for name in self.redis.zrange(key, 0, -1)]


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
            origin=told_origin(origin),
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


def _entries(answer: Any) -> list[tuple[bytes, Any]]:
    """Entries of the one stream asked for: a list of pairs under RESP2, a dict under RESP3."""
    if isinstance(answer, dict):
        return [entry for batches in answer.values() for batch in batches for entry in batch]
    return [entry for _, entries in answer or [] for entry in entries]
