"""Both ends of the queue on one real Valkey, driven at random: whatever dies, order and once hold.

The model is a list: a run's state is the seqs whose effects it holds. Whatever sequence of submits,
resends, tombstones, cancellations, closed gaps, lost answers, snapshots, evictions, drains, crashes,
adoptions and zombies came before, what can be rebuilt from snapshot and log must be exactly the
acknowledged ops, in seq order, each once; and what is counted as waiting is what has no result.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tinsmith.protocol import keys
from tinsmith.protocol.jobs import Job, Kind, ModelCard, Result, failure
from tinsmith_server.bus import Bus
from tinsmith_worker.queue import Fenced, Queue

BASE = "tiny"
RUNS = ("s:train:0", "s:train:1")
LEASE_MS = 3_600_000


@dataclass
class Memory:
    epoch: int
    state: list[int]
    last: int = -1
    claimed: deque[Job] = field(default_factory=deque)


@dataclass
class Worker:
    queue: Queue
    runs: dict[str, Memory] = field(default_factory=dict)
    news: set[str] = field(default_factory=set)


class QueueMachine(RuleBasedStateMachine):
    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.bus = Bus(self.url)
        self.workers: list[Worker] = []
        self.names = 0
        self.store: dict[str, list[int]] = {}
        self.submitted: dict[str, set[int]] = {run: set() for run in RUNS}
        self.tombstones: dict[str, set[int]] = {run: set() for run in RUNS}
        self.acknowledged: dict[str, list[int]] = {run: [] for run in RUNS}
        self.loop.run_until_complete(self.bus.redis.flushall())
        self.add_worker()

    def teardown(self) -> None:
        self._settle()
        for worker in self.workers:
            worker.queue.redis.close()
        self.loop.run_until_complete(self.bus.close())
        self.loop.close()

    # What the client does

    @rule(
        run=st.sampled_from(RUNS),
        sent=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), min_size=1, max_size=4),
    )
    def submit(self, run: str, sent: list[tuple[int, int]]) -> None:
        for ahead, luck in sent:
            self._submit(run, ahead, refused=luck == 4)

    def _submit(self, run: str, ahead: int, refused: bool) -> None:
        """Chunks arrive out of order, so up to two seqs ahead; the run itself is created first."""
        seqs = self.submitted[run]
        missing = next(seq for seq in range(len(seqs) + 1) if seq not in seqs)
        seq = missing + ahead if seqs else 0
        if seq in seqs:
            return
        seqs.add(seq)
        if refused and seq > 0:
            self.tombstones[run].add(seq)
            self._await(
                self.bus.submit_failed("org", run, seq, Kind.OPTIM_STEP, failure("refused"))
            )
        else:
            self._await(self.bus.submit("org", BASE, _job(run, seq)))

    @rule(run=st.sampled_from(RUNS), pick=st.integers(0, 50))
    def resend(self, run: str, pick: int) -> None:
        seqs = sorted(self.submitted[run])
        if seqs:
            self._await(self.bus.submit("org", BASE, _job(run, seqs[pick % len(seqs)])))

    @rule(run=st.sampled_from(RUNS), pick=st.integers(0, 50), in_work=st.booleans())
    def cancel(self, run: str, pick: int, in_work: bool) -> None:
        """An op without a result, and all behind it; the numbers between that never came go along."""
        for worker in self.workers if in_work else ():
            self._take(worker, 3)
        seqs = sorted(self._waiting(run))
        if not seqs:
            return
        seq = seqs[pick % len(seqs)]
        self._await(self.bus.cancel(f"{run}:{seq}"))
        self._fail(run, seq)

    # What workers do

    @precondition(lambda self: len(self.workers) < 3)
    @rule()
    def add_worker(self) -> None:
        self.names += 1
        name = f"w{self.names}"
        queue = Queue(self.url, name)
        queue.redis.set(keys.lease(name), b"1", px=LEASE_MS)
        card = ModelCard(
            name=BASE, family="llama", vocab_size=8, max_context_length=8, max_lora_rank=8
        )
        queue.announce([card])
        self.workers.append(Worker(queue))

    @precondition(lambda self: self.workers)
    @rule(pick=st.integers(0, 9), budget=st.integers(1, 3), luck=st.integers(0, 3))
    def take(self, pick: int, budget: int, luck: int) -> None:
        """The answer may be lost on its way; what was asked stands, and is asked again."""
        self._take(self._pick(pick), budget, lost=luck == 3)

    @precondition(lambda self: self.workers)
    @rule(pick=st.integers(0, 9), many=st.integers(1, 4))
    def finish(self, pick: int, many: int) -> None:
        for _ in range(many):
            self._finish(self._pick(pick))

    @precondition(lambda self: self.workers)
    @rule(pick=st.integers(0, 9), run=st.sampled_from(RUNS))
    def snapshot(self, pick: int, run: str) -> None:
        self._snapshot(self._pick(pick), run)

    def _snapshot(self, worker: Worker, run: str) -> None:
        memory = worker.runs.get(run)
        if not memory or not memory.state:
            return
        reference = f"{run}/{memory.epoch}-{memory.state[-1]}"
        self.store.setdefault(reference, list(memory.state))
        try:
            worker.queue.snapshot_taken(run, memory.epoch, reference, memory.state[-1])
        except Fenced:
            del worker.runs[run]

    @precondition(lambda self: self.workers)
    @rule(pick=st.integers(0, 9), run=st.sampled_from(RUNS))
    def evict(self, pick: int, run: str) -> None:
        """A run leaves memory, with or without ops in work, and comes back by its snapshot and log."""
        worker = self._pick(pick)
        if memory := worker.runs.get(run):
            memory.state = self._rebuild(worker.queue, run)

    @precondition(lambda self: self.workers)
    @rule(run=st.sampled_from(RUNS), ahead=st.integers(1, 2), busy=st.booleans())
    def close_gap(self, run: str, ahead: int, busy: bool) -> None:
        """One does not come; as if it had been waited for long enough by whoever knows the run."""
        self._submit(run, ahead, refused=False)
        for worker in list(self.workers):
            for _ in range(0 if busy else 8):
                self._take(worker, 3)
                self._finish(worker)
            if memory := worker.runs.get(run):
                done = worker.queue.record(run).done
                missing, behind = failure("missing"), failure("behind")
                if worker.queue.close_gap(run, memory.epoch, missing, behind):
                    assert done + 1 not in self.submitted[run], "it had come"
                    self._fail(run, done + 1)

    @precondition(lambda self: len(self.workers) > 1)
    @rule(pick=st.integers(0, 9))
    def drain(self, pick: int) -> None:
        """A planned stop: what is done is snapshot, what is claimed goes back."""
        worker = self._pick(pick)
        for run in RUNS:
            self._snapshot(worker, run)
        worker.queue.withdraw([BASE])
        self.workers.remove(worker)

    @precondition(lambda self: self.workers)
    @rule(pick=st.integers(0, 9))
    def lose_lease(self, pick: int) -> None:
        """The worker sleeps past its lease and may go on later: a zombie."""
        worker = self._pick(pick)
        worker.queue.redis.delete(keys.lease(worker.queue.worker))

    @precondition(lambda self: len(self.workers) > 1)
    @rule(pick=st.integers(0, 9))
    def kill(self, pick: int) -> None:
        worker = self._pick(pick)
        worker.queue.redis.delete(keys.lease(worker.queue.worker))
        self.workers.remove(worker)

    # What must hold

    @invariant()
    def what_can_be_rebuilt_is_what_was_acknowledged(self) -> None:
        if not self.names:
            return
        reader = Queue(self.url, "reader")
        for run in RUNS:
            if self.submitted[run]:
                assert self._rebuild(reader, run) == self.acknowledged[run]
                assert self.acknowledged[run] == sorted(set(self.acknowledged[run]))
        waiting = sum(len(self._waiting(run)) for run in RUNS)
        assert int(reader.redis.hget(keys.load(keys.SERVER_SCOPE), "requests") or 0) == waiting
        reader.redis.close()

    def _waiting(self, run: str) -> set[int]:
        return self.submitted[run] - self.tombstones[run] - set(self.acknowledged[run])

    def _fail(self, run: str, first: int) -> None:
        """Everything from there on that has no result, come or not, has failed."""
        failed = set(range(first, max(self.submitted[run]) + 1)) - set(self.acknowledged[run])
        self.submitted[run] |= failed
        self.tombstones[run] |= failed

    def _settle(self) -> None:
        """Everyone dies, a fresh worker takes over: all that was contiguous has run, once."""
        for worker in list(self.workers):
            worker.queue.redis.delete(keys.lease(worker.queue.worker))
        self.workers.clear()
        self.add_worker()
        last = self.workers[0]
        last.news |= last.queue.adopt_orphans([BASE])
        for _ in range(200):
            last.news |= set(RUNS)
            self._take(last, 3)
            if not any(memory.claimed for memory in last.runs.values()):
                break
            self._finish(last)
        for run in RUNS:
            seqs = self.submitted[run]
            contiguous = next(seq for seq in range(len(seqs) + 1) if seq not in seqs)
            expected = [seq for seq in range(contiguous) if seq not in self.tombstones[run]]
            assert self.acknowledged[run] == expected

    def _take(self, worker: Worker, budget: int, lost: bool = False) -> None:
        if worker.queue.redis.exists(keys.lease(worker.queue.worker)):
            worker.news |= worker.queue.adopt_orphans([BASE])
        worker.news |= worker.queue.news() | set(worker.runs)
        at = {run: _taken_of(worker.runs.get(run)) for run in sorted(worker.news)}
        answer = worker.queue.take(at, budget)
        if lost:
            return
        for taken in answer:
            memory = worker.runs.get(taken.run_id)
            if memory is None or memory.epoch != taken.epoch:
                state = self._rebuild(worker.queue, taken.run_id)
                memory = worker.runs[taken.run_id] = Memory(taken.epoch, state)
            memory.last = taken.last
            memory.claimed.extend(taken.jobs)
        worker.news.clear()

    def _finish(self, worker: Worker) -> None:
        for run, memory in list(worker.runs.items()):
            if not memory.claimed:
                continue
            job = memory.claimed.popleft()
            memory.state.append(job.seq_id)
            try:
                worker.queue.done(job, memory.epoch, Result(data=str(job.seq_id).encode()))
            except Fenced:
                del worker.runs[run]
                continue
            self.acknowledged[run].append(job.seq_id)

    def _rebuild(self, queue: Queue, run: str) -> list[int]:
        record = queue.record(run)
        state = list(self.store[record.snapshot]) if record.snapshot else []
        for job in queue.replay_log(run):
            assert job.body == str(job.seq_id).encode(), "a logged op has lost its body"
            state.append(job.seq_id)
        return state

    def _pick(self, pick: int) -> Worker:
        return self.workers[pick % len(self.workers)]

    def _await(self, coroutine: object) -> None:
        self.loop.run_until_complete(coroutine)  # type: ignore[arg-type]


def _taken_of(memory: Memory | None) -> tuple[int, int]:
    return (memory.epoch, memory.last) if memory else (0, -1)


def _job(run: str, seq: int) -> Job:
    return Job(
        request_id=f"{run}:{seq}",
        run_id=run,
        seq_id=seq,
        kind=Kind.CREATE_MODEL if seq == 0 else Kind.OPTIM_STEP,
        body=str(seq).encode(),
        num_tokens=1,
    )


def test_order_and_once_hold_whatever_dies(valkey_url: str) -> None:
    QueueMachine.url = valkey_url
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        QueueMachine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
