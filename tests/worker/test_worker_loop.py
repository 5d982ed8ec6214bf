"""The loop on a real Valkey and a tiny model: what moves, fails or waits in the middle of work."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from redis.exceptions import ConnectionError as RedisAway
from structlog.testing import capture_logs
from tinsmith.protocol import keys, tensors
from tinsmith.protocol import wire_pb2 as pb
from tinsmith.protocol.bodies import AdamParams, SamplingParams
from tinsmith.protocol.jobs import (
    AdapterSpec,
    CreateModelJob,
    Job,
    Kind,
    ModelCard,
    OptimStepJob,
    Result,
    SampleJob,
    SaveJob,
    encode,
    failure,
)
from tinsmith.protocol.origin import Origin
from tinsmith_server.asking import ORIGIN
from tinsmith_server.bus import Bus
from tinsmith_worker import loop, ops
from tinsmith_worker.engine.base_model import BaseModel, load
from tinsmith_worker.engine.optimizer import RunState
from tinsmith_worker.engine.sampler import Sampler
from tinsmith_worker.loop import Worker
from tinsmith_worker.queue import Queue
from tinsmith_worker.sample_queue import SampleQueue
from tinsmith_worker.sampler_weights import SamplerWeights
from tinsmith_worker.samples import SamplingDesk
from tinsmith_worker.settings import Settings
from tinsmith_worker.store import Store, StoreRefused

from tests.conftest import running_valkey
from tests.worker.tiny_models import VOCAB, save

PASS_TOKENS = 64
SPEC = AdapterSpec(base_model="tiny", rank=2, seed=1)
CREATE = encode(CreateModelJob(adapter=SPEC))
STEP = encode(OptimStepJob(adam=AdamParams(learning_rate=1e-2)))


class Disk(Store):
    """Can be full, and can be slow: writing waits for the gate."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.full = 0
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()

    def write_folder(self, prefix: str, files: dict[str, bytes]) -> int:
        self.begun.set()
        assert self.gate.wait(20)
        if self.full:
            self.full -= 1
            raise StoreRefused("no space left on device")
        return super().write_folder(prefix, files)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_valkey(tmp_path_factory.mktemp("loop-valkey")) as made:
        yield made


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BaseModel]:
    folder = save("llama", tmp_path_factory.mktemp("llama"))
    return {name: load(str(folder), name=name) for name in ("tiny", "other")}


class House:
    """A bus, a store, and workers by name."""

    def __init__(self, url: str, folder: Path, models: dict[str, BaseModel]) -> None:
        self.url, self.models = url, models
        self.runner, self.bus, self.disk = asyncio.Runner(), Bus(url), Disk(folder)
        self.call(self.bus.redis.flushall())
        self.workers: list[Worker] = []

    def call(self, coroutine: object) -> object:
        return self.runner.run(coroutine, context=copy_context())  # type: ignore[arg-type]

    def worker(self, name: str = "a", **settings: object) -> Worker:
        made = Settings(
            redis_url=self.url,
            store_url="",
            models={},
            max_pass_tokens=PASS_TOKENS,
            **settings,  # type: ignore[arg-type]
        )
        queue = Queue(self.url, name)
        queue.redis.set(keys.lease(name), b"1", px=60_000)
        desks = {}
        for served, model in self.models.items():
            sampler = Sampler(model, max_slots=8, max_pass_tokens=PASS_TOKENS, max_blocks=64)
            weights = SamplerWeights(self.disk, model, 4, on_leave=sampler.forget, ring=queue.ring)
            desks[served] = SamplingDesk(queue, model, sampler, weights, max_jobs=16)
        queue.announce(
            ModelCard(
                name=served,
                family="llama",
                vocab_size=VOCAB,
                max_context_length=256,
                max_lora_rank=8,
            )
            for served in self.models
        )
        worker = Worker(made, queue, self.disk, self.models, desks)
        self.workers.append(worker)
        return worker

    def submit(
        self, run: str, seq: int, kind: Kind, body: bytes, tokens: int = 0, base: str = "tiny"
    ) -> str:
        request = f"{run}:{seq}"
        job = Job(
            request_id=request, run_id=run, seq_id=seq, kind=kind, body=body, num_tokens=tokens
        )
        self.call(self.bus.submit("org", base, job))
        return request

    def create(self, *runs: str, base: str = "tiny") -> None:
        for run in runs:
            self.submit(run, 0, Kind.CREATE_MODEL, CREATE, base=base)

    def learn(self, run: str, seq: int, length: int = 20, seed: int = 0, **more: object) -> str:
        return self.submit(
            run, seq, Kind.FORWARD_BACKWARD, learn_body(length, seed, **more), length
        )

    def step(self, run: str, seq: int) -> str:
        return self.submit(run, seq, Kind.OPTIM_STEP, STEP)

    def save(self, run: str, seq: int, prefix: str, *, behind: bool = True) -> str:
        body = SaveJob(prefix=prefix, optimizer=False, answer={"path": prefix}, behind=behind)
        return self.submit(run, seq, Kind.SAVE_WEIGHTS_FOR_SAMPLER, encode(body))

    def sample(
        self, name: str, prefix: str | None = None, base: str = "tiny", tokens: int = 4
    ) -> str:
        params = SamplingParams(max_tokens=tokens, temperature=1.0, stop=[])
        body = SampleJob(
            base_model=base,
            adapter_prefix=prefix,
            prompt=[5, 6, 7],
            num_samples=1,
            params=params,
            seed=3,
        )
        job = Job(request_id=name, run_id="s", seq_id=0, kind=Kind.SAMPLE, body=encode(body))
        self.call(self.bus.submit_sample("org", base, job, 0))
        return name

    def result(self, request: str) -> Result | None:
        return self.call(self.bus.wait(request, 0.001))  # type: ignore[return-value]

    def until(self, worker: Worker, *requests: str) -> list[Result]:
        for _ in range(200):
            found = [self.result(one) for one in requests]
            if all(found):
                return found  # type: ignore[return-value]
            worker.turn()
        raise AssertionError(f"no result after 200 turns: {requests}")

    def lose_answer(
        self, worker: Worker, command: str, queue: Queue | SampleQueue | None = None
    ) -> None:
        """Redis does as the worker says once more, and the worker does not hear of it."""
        queue = queue or worker._queue
        real = getattr(queue, command)

        def deaf(*given: object, **named: object) -> object:
            setattr(queue, command, real)
            real(*given, **named)
            raise RedisAway("the answer was lost")

        setattr(queue, command, deaf)
        while getattr(queue, command) is deaf:
            worker.patient_turn()

    def adopt(self, heir: Worker, name: str = "a") -> None:
        """As if `name` had lost its lease, without its knowing."""
        heir._queue.redis.delete(keys.lease(name))
        heir._intake.hear(heir._queue.adopt_orphans(self.models))

    def log(self, run: str) -> list[str]:
        rows = self.call(self.bus.redis.lrange(keys.log(run), 0, -1))
        return [row.decode() for row in rows]  # type: ignore[attr-defined]


@contextmanager
def asked_by(http_request_id: str) -> Iterator[None]:
    """What is submitted meanwhile is submitted by this request."""
    token = ORIGIN.set(partial(Origin, http_request_id))
    try:
        yield
    finally:
        ORIGIN.reset(token)


def learn_body(
    length: int, seed: int, weight: float = 1.0, loss_fn: str = "cross_entropy"
) -> bytes:
    tokens = np.random.default_rng(seed).integers(2, VOCAB, length + 1)
    datum = pb.Datum()
    datum.model_input.add().encoded_text.tokens = tokens[:-1].astype("<i4").tobytes()
    datum.loss_fn_inputs["target_tokens"].CopyFrom(tensors.encode_tensor(tokens[1:]))
    weights = np.full(length, weight, np.float32)
    datum.loss_fn_inputs["weights"].CopyFrom(tensors.encode_tensor(weights))
    return pb.ForwardBackwardRequest(data=[datum], loss_fn=loss_fn).SerializeToString()


def group_body(copies: int) -> bytes:
    """Datums that share all but their last tokens: many tokens on paper, few in a pass."""
    request = pb.ForwardBackwardRequest(loss_fn="cross_entropy")
    for last in range(copies):
        one = pb.ForwardBackwardRequest.FromString(learn_body(40, 1))
        datum = one.data[0]
        tokens = np.frombuffer(datum.model_input[0].encoded_text.tokens, "<i4").copy()
        tokens[-1] = 2 + last
        datum.model_input[0].encoded_text.tokens = tokens.tobytes()
        request.data.append(datum)
    return request.SerializeToString()


def long_body() -> bytes:
    """More than a few passes can take."""
    request = pb.ForwardBackwardRequest(loss_fn="cross_entropy")
    for seed in range(6):
        request.data.extend(pb.ForwardBackwardRequest.FromString(learn_body(50, seed)).data)
    return request.SerializeToString()


def loss_of(result: Result) -> float:
    assert not result.failed, result.data
    return pb.ForwardBackwardOutput.FromString(result.data).metrics["loss:sum"]


def tokens_of(result: Result) -> bytes:
    assert not result.failed, result.data
    return pb.SampleResponse.FromString(result.data).sequences[0].tokens


@pytest.fixture
def house(
    url: str, tmp_path: Path, models: dict[str, BaseModel], monkeypatch: pytest.MonkeyPatch
) -> Iterator[House]:
    monkeypatch.setattr(loop, "_HOUSEKEEPING_SECONDS", 0.01)
    made = House(url, tmp_path, models)
    yield made
    made.disk.gate.set()
    for worker in made.workers:
        worker._saver.close()
        worker._queue.redis.close()
    made.call(made.bus.close())
    made.runner.close()


def state_row(worker: Worker, run: str) -> torch.Tensor:
    state = worker._runs._resident[run].state
    assert state is not None
    return state.adapter.row.clone()


# A Redis that comes and goes


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_AWAY_SECONDS", 0.0)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("command", ["take", "done", "news", "notices"])
def test_what_redis_did_without_our_hearing_of_it_is_done_once(house: House, command: str) -> None:
    worker = house.worker()
    house.create("twin", "r")
    for seq in (1, 2, 4, 5):
        house.learn("twin", seq, 50, seq)
    house.step("twin", 3)
    house.until(worker, "twin:5", "r:0")
    expected = state_row(worker, "twin")

    for seq in (1, 2, 4, 5):
        house.learn("r", seq, 50, seq)
    house.step("r", 3)
    house.lose_answer(worker, command)
    results = house.until(worker, *(f"r:{seq}" for seq in range(1, 6)))
    assert not any(one.failed for one in results)
    assert torch.equal(state_row(worker, "r"), expected)
    assert len(house.log("r")) == 6


@pytest.mark.usefixtures("hasty")
def test_samples_that_were_handed_to_us_without_our_hearing_of_it(house: House) -> None:
    worker = house.worker()
    [expected] = house.until(worker, house.sample("s:0"))
    house.sample("s:1")
    house.lose_answer(worker, "take", worker._queue.samples)
    [again] = house.until(worker, "s:1")
    assert tokens_of(again) == tokens_of(expected)


@pytest.mark.usefixtures("hasty")
def test_a_redis_that_went_back_gets_what_it_forgot_once_more(house: House) -> None:
    """Its file was behind by a step. The state here is ahead of it, and must not step twice."""
    worker = house.worker()
    house.create("r")
    house.learn("r", 1, 20)
    house.until(worker, "r:1")
    redis = worker._queue.redis
    before = {name: redis.dump(name) for name in redis.keys("*")}
    house.step("r", 2)
    house.until(worker, "r:2")
    expected = state_row(worker, "r")
    redis.flushall()
    for name, value in before.items():
        redis.restore(name, 0, value)
    redis.set(keys.lease("a"), b"1", px=60_000)
    worker._out_of_touch = True
    house.step("r", 2)  # the client asks again under the same number
    house.until(worker, "r:2")
    assert torch.equal(state_row(worker, "r"), expected)


@pytest.mark.usefixtures("hasty")
def test_a_worker_taken_for_dead_is_given_new_runs_once_it_wakes(house: House) -> None:
    zombie, heir = house.worker("a"), house.worker("b")
    house.adopt(heir)
    heir._queue.redis.set(keys.lease("a"), b"1", px=60_000)
    assert heir._queue.redis.zscore(keys.workers("tiny"), "a") is None
    zombie.turn()
    assert heir._queue.redis.zscore(keys.workers("tiny"), "a") is not None


# Order


def test_a_step_never_overtakes_a_gradient(house: House) -> None:
    """Pipelined, in parts too large for a pass, with company: as if one op at a time."""
    patient = house.worker()
    house.create("slow")
    kinds = ("learn", "learn", "step", "learn", "step")
    for seq, op in enumerate(kinds, 1):
        request = house.learn("slow", seq, 50, seq) if op == "learn" else house.step("slow", seq)
        house.until(patient, request)
    expected = state_row(patient, "slow")

    house.create("fast", "company")
    for seq, op in enumerate(kinds, 1):
        house.learn("fast", seq, 50, seq) if op == "learn" else house.step("fast", seq)
        house.learn("company", seq, 30, 90 + seq)
    house.until(patient, "fast:5", "company:5")
    assert torch.equal(state_row(patient, "fast"), expected)


def test_a_failed_op_is_answered_in_its_turn_and_those_behind_it_run(house: House) -> None:
    worker = house.worker()
    house.create("r")
    house.learn("r", 1, 50)
    house.learn("r", 2, 50, loss_fn="no_such")
    house.learn("r", 3, 50, weight=3e38)
    house.learn("r", 4, 50)
    first, unknown, infinite, last, step = house.until(
        worker, "r:1", "r:2", "r:3", "r:4", house.step("r", 5)
    )
    assert not first.failed
    assert b"no_such" in unknown.data
    assert b"not finite" in infinite.data
    assert loss_of(first) == loss_of(last)
    assert not step.failed
    assert worker._scheduler.lines == {}
    assert (worker._scheduler._tokens, worker._scheduler._in_work.total()) == (0, 0)


def test_what_take_left_behind_is_taken_without_waiting_for_a_bell(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group with a shared prompt fills the budget on paper and is done in one pass."""
    worker = house.worker()
    house.create("r")
    house.until(worker, "r:0")
    waited = []
    real = worker._queue.wait

    def wait(*given: object) -> set[str]:
        waited.append(set(worker._intake._news))
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(worker._queue, "wait", wait)
    house.submit("r", 1, Kind.FORWARD_BACKWARD, group_body(8), 320)
    house.step("r", 2)
    house.until(worker, "r:2")
    assert set() in waited
    assert {"r"} not in waited


# Runs that move


@pytest.mark.parametrize("many", [1, 3])
def test_a_run_that_moves_in_the_middle_of_a_pass(house: House, many: int) -> None:
    """Its requests are settled together, and only the first notices that they are nobody's."""
    zombie = house.worker("a")
    house.create("r", "stays")
    house.until(zombie, "r:0", "stays:0")
    for seq in range(1, many + 1):
        house.learn("r", seq, 8, seq)
    house.learn("stays", 1, 8)
    zombie._take()
    zombie._begin()
    heir = house.worker("b")
    house.adopt(heir)
    zombie.turn()
    assert zombie._training == {}
    assert zombie._scheduler.lines == {}
    assert (zombie._scheduler._tokens, zombie._scheduler._in_work.total()) == (0, 0)
    results = house.until(heir, *(f"r:{seq}" for seq in range(1, many + 1)), "stays:1")
    assert not any(one.failed for one in results)


def test_a_run_that_moves_while_its_long_request_is_half_done(house: House) -> None:
    zombie = house.worker("a")
    house.create("r")
    house.submit("r", 1, Kind.FORWARD_BACKWARD, long_body(), 300)
    house.step("r", 2)
    zombie.turn()
    zombie.turn()
    assert zombie._training
    heir = house.worker("b")
    house.adopt(heir)
    house.until(heir, "r:1", "r:2")
    for _ in range(8):
        zombie.turn()
    assert zombie._training == {}
    assert not any(one.busy for one in zombie._trainers.values())
    assert heir._runs._resident["r"].state.steps == 1  # type: ignore[union-attr]


def test_what_waits_behind_a_fenced_request_is_not_computed(house: House) -> None:
    zombie = house.worker("a")
    house.create("r")
    house.until(zombie, "r:0")
    house.learn("r", 1, 8)
    house.submit("r", 2, Kind.FORWARD_BACKWARD, long_body(), 300)
    zombie._take()
    zombie._begin()
    heir = house.worker("b")
    house.adopt(heir)
    zombie._train()
    assert not any(one.busy for one in zombie._trainers.values())
    assert not any(one.failed for one in house.until(heir, "r:1", "r:2"))


def test_an_accident_in_a_pass_of_a_run_that_has_moved(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    zombie = house.worker("a")
    house.create("r")
    house.until(zombie, "r:0")
    for seq in (1, 2):
        house.learn("r", seq, 8)
    zombie._take()
    zombie._begin()
    heir = house.worker("b")
    house.adopt(heir)

    def broken(current: object) -> None:
        raise IndexError("of ours")

    with monkeypatch.context() as patch:
        patch.setattr(zombie._models["tiny"], "hidden", broken)
        zombie._train()
    assert zombie._scheduler.lines == {}
    assert not any(one.failed for one in house.until(heir, "r:1", "r:2"))


def test_a_step_that_stopped_halfway_leaves_no_trace(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = house.worker()
    house.create("r", "twin")
    house.until(worker, house.learn("r", 1, 30))

    def halfway(steps: list[tuple[RunState, object]]) -> None:
        for run, _ in steps:
            run.adapter.row += 1
            run.gradient = None
        raise RuntimeError("of ours")

    with monkeypatch.context() as patch:
        patch.setattr(ops, "optim_steps", halfway)
        [failed] = house.until(worker, house.step("r", 2))
    assert failed.failed
    house.until(worker, house.step("r", 3))
    house.learn("twin", 1, 30)
    house.until(worker, house.step("twin", 2))
    assert torch.equal(state_row(worker, "r"), state_row(worker, "twin"))


def test_several_ops_of_a_run_that_cannot_be_rebuilt_and_has_moved(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    zombie = house.worker("a")
    house.create("r", "stays")
    house.until(zombie, "r:0", "stays:0")
    for seq in (1, 2, 3):
        house.learn("r", seq, 8)
    zombie._take()
    heir = house.worker("b")
    house.adopt(heir)
    zombie._runs.drop("r")

    def damaged(*_: object) -> None:
        raise RuntimeError("the log does not fit the snapshot")

    monkeypatch.setattr(zombie._runs, "_rebuild", damaged)
    zombie._begin()
    assert zombie._scheduler.lines == {}
    assert (zombie._scheduler._tokens, zombie._scheduler._in_work.total()) == (0, 0)
    assert not any(one.failed for one in house.until(heir, "r:1", "r:2", "r:3"))


def test_a_run_that_moves_while_a_save_is_written(house: House) -> None:
    zombie = house.worker("a")
    house.create("r")
    house.until(zombie, "r:0")
    house.disk.gate.clear()
    house.save("r", 1, "named", behind=False)
    house.learn("r", 2, 8)
    zombie.turn()
    assert house.disk.begun.wait(20)
    assert zombie._saving
    heir = house.worker("b")
    house.adopt(heir)
    zombie._let_go("r")
    assert zombie._saving == []
    house.disk.gate.set()
    saved, learned = house.until(heir, "r:1", "r:2")
    assert not saved.failed
    assert not learned.failed
    zombie.turn()
    assert zombie._scheduler.lines == {}


def test_an_accident_in_a_pass_fails_those_in_it_and_the_runs_go_on(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = house.worker()
    house.create("r", "s")
    house.learn("r", 1, 30)
    house.until(worker, "r:1")
    real, left = worker._models["tiny"].hidden, [1]

    def broken(current: object) -> torch.Tensor:
        if left[0]:
            left[0] -= 1
            raise IndexError("of ours")
        return real(current)  # type: ignore[arg-type]

    monkeypatch.setattr(worker._models["tiny"], "hidden", broken)
    with asked_by("http-1"):
        asked = [house.learn("r", 2, 20), house.learn("r", 3, 20), house.learn("s", 1, 20)]
    with capture_logs() as capture:
        failed = house.until(worker, *asked)
    assert all(one.failed and b"Internal error" in one.data for one in failed)
    told = [one for one in capture if one["event"] == "op_failed"]
    assert {one["request_id"] for one in told} == set(asked)
    assert {one["http_request_id"] for one in told} == {"http-1"}
    again, _ = house.until(worker, house.learn("r", 4, 30), house.step("r", 5))
    assert not again.failed
    # The gradient of r:1 and r:4 alone: the run was rebuilt from its log.
    house.create("twin")
    house.learn("twin", 1, 30)
    house.learn("twin", 2, 30)
    house.until(worker, house.step("twin", 3))
    assert torch.equal(state_row(worker, "r"), state_row(worker, "twin"))


# Saves


def test_sampling_and_training_go_on_while_a_save_is_written(house: House) -> None:
    worker = house.worker()
    house.create("r")
    house.until(worker, "r:0")
    house.disk.gate.clear()
    _, sampled, learned = house.until(
        worker, house.save("r", 1, "now"), house.sample("x", "now"), house.learn("r", 2, 20)
    )
    assert not house.disk.has_folder("now")
    assert not learned.failed
    house.until(worker, house.step("r", 3))
    later = house.until(worker, house.sample("y", "now"))[0]
    assert tokens_of(later) == tokens_of(sampled)
    house.disk.gate.set()
    worker._saver.close()
    assert house.disk.has_folder("now")


def test_a_full_disk_costs_an_unnamed_save_time_and_a_named_one_its_answer(house: House) -> None:
    worker = house.worker()
    house.create("r")
    house.until(worker, "r:0")
    house.disk.full = 1
    [named] = house.until(worker, house.save("r", 1, "named", behind=False))
    assert named.failed
    assert b"full or refuses" in named.data
    house.disk.full = 3
    [unnamed] = house.until(worker, house.save("r", 2, "unnamed"))
    assert not unnamed.failed
    assert "r:2 save_weights_for_sampler" in house.log("r")
    for _ in range(500):
        if not worker._saver.writes_for("r"):
            break
        worker.turn()
    assert house.disk.has_folder("unnamed")
    assert house.disk.full == 0


def test_a_stop_with_a_write_that_will_not_succeed_leaves_the_save_to_the_heir(
    house: House,
) -> None:
    leaving = house.worker("a")
    house.create("r")
    house.until(leaving, "r:0")
    house.disk.full = 10**6
    house.until(leaving, house.save("r", 1, "unnamed"))
    leaving.drain()
    leaving.leave()
    assert "r:1 save_weights_for_sampler" in house.log("r")
    house.disk.full = 0
    heir = house.worker("b")
    heir._intake.hear(heir._queue.adopt_orphans(house.models))
    [sampled] = house.until(heir, house.sample("x", "unnamed"), house.learn("r", 2, 8))[:1]
    assert not sampled.failed
    assert house.disk.has_folder("unnamed")


def test_a_stop_with_an_open_write_takes_no_snapshot_that_would_hide_it(house: House) -> None:
    leaving = house.worker("a")
    house.create("r")
    house.until(leaving, "r:0")
    house.disk.full = 1
    house.until(leaving, house.save("r", 1, "unnamed"))
    leaving._saver.close()
    leaving.drain()
    leaving.leave()
    assert not house.disk.has_folder("unnamed")
    assert "r:1 save_weights_for_sampler" in house.log("r")


def test_a_snapshot_waits_for_the_saves_before_it(house: House) -> None:
    worker = house.worker(snapshot_steps=1)
    house.create("r")
    house.until(worker, "r:0")
    house.disk.gate.clear()
    house.until(worker, house.save("r", 1, "unnamed"), house.step("r", 2))
    assert worker._runs._snapshots == {}
    house.disk.gate.set()
    for _ in range(500):
        if not worker._saver.writes_for("r"):
            break
        worker.turn()
    house.until(worker, house.step("r", 3))
    for _ in range(500):
        if not house.log("r"):
            break
        worker.turn()
    assert house.log("r") == []
    assert house.disk.has_folder("unnamed")


def test_a_snapshot_waits_for_the_step_that_uses_the_gradient(house: House) -> None:
    worker = house.worker(snapshot_log_bytes=1)
    house.create("r")
    house.until(worker, "r:0")
    for _ in range(500):  # the creation's own snapshot
        if not house.log("r"):
            break
        worker.turn()
    house.until(worker, house.learn("r", 1, 30))
    worker._saver.close()
    worker._runs.settle_snapshots()
    assert "r:1 forward_backward" in house.log("r")


def test_a_stop_in_the_middle_of_long_work_gives_it_to_the_heir(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_DRAIN_SECONDS", 0.0)
    leaving = house.worker("a")
    house.create("r")
    house.learn("r", 1, 20)
    house.until(leaving, house.step("r", 2))
    expected = state_row(leaving, "r")
    house.learn("r", 3, 60)
    leaving._take()
    leaving._begin()
    leaving.drain()
    leaving.leave()
    assert house.log("r") == []  # the snapshot covers it
    heir = house.worker("b")
    heir._intake.hear(heir._queue.adopt_orphans(house.models))
    [learned] = house.until(heir, "r:3")
    assert not learned.failed
    assert torch.equal(state_row(heir, "r"), expected)


# Sampling


def test_two_models_on_one_worker_and_cancelling_reaches_both(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = house.worker()
    house.create("r")
    house.create("q", base="other")
    house.until(worker, "r:0", "q:0")
    names = [house.sample(f"{base}-x", base=base, tokens=200) for base in ("tiny", "other")]
    worker.turn()
    assert all(desk.busy for desk in worker._desks.values())
    for name in names:
        house.call(house.bus.cancel(name))
    steps = []
    for name, desk in worker._desks.items():
        real: Callable[[], None] = desk.step
        monkeypatch.setattr(desk, "step", lambda real=real, name=name: (steps.append(name), real()))
    worker._sample(30.0)  # a share long enough for all of their tokens
    assert sorted(steps) == ["other", "tiny"]
    assert not any(desk.busy for desk in worker._desks.values())
    assert all(house.result(name).failed for name in names)  # type: ignore[union-attr]


def test_sampling_has_its_share_of_the_time_and_no_more(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = house.worker(sampling_share=0.75)
    house.sample("x", tokens=100)
    worker._take()
    clock = [0.0]
    steps = []
    desk = worker._desks["tiny"]
    real: Callable[[], None] = desk.step

    def step() -> None:
        steps.append(clock[0])
        clock[0] += 1.0
        real()

    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(desk, "step", step)
    worker._sample(2.0)  # three quarters to one quarter
    assert len(steps) == 6
    steps.clear()
    worker._sample(0.0)
    assert len(steps) == 1


def test_an_accident_in_a_step_fails_its_requests_and_not_the_worker(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = house.worker()
    with asked_by("http-x"):
        house.sample("x", tokens=50)
    worker.turn()
    real = worker._models["tiny"].hidden

    def broken(current: object) -> None:
        raise IndexError("of ours")

    monkeypatch.setattr(worker._models["tiny"], "hidden", broken)
    with capture_logs() as capture:
        [failed] = house.until(worker, "x")
    assert failed.failed
    assert b"Internal error" in failed.data
    [line] = [one for one in capture if one["event"] == "sampling_step_failed"]
    assert (line["request_ids"], line["http_request_ids"]) == (["x"], ["http-x"])
    monkeypatch.setattr(worker._models["tiny"], "hidden", real)
    [fine] = house.until(worker, house.sample("y"))
    assert not fine.failed


def test_a_store_out_of_reach_delays_the_sample_that_needs_it_and_no_other(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = house.worker()
    house.create("r")
    house.until(worker, house.save("r", 1, "kept", behind=False))
    [expected] = house.until(worker, house.sample("before", "kept"))
    worker._desks["tiny"].weights._held.clear()

    def unreachable(path: str) -> bytes:
        raise OSError("connection refused")

    with monkeypatch.context() as cut:
        cut.setattr(house.disk, "_read", unreachable)
        house.sample("x", "kept")
        [fine] = house.until(worker, house.sample("y"))
        assert not fine.failed
        assert house.result("x") is None
        assert b"out of reach" in worker._queue.redis.get(keys.waits("x"))
    [told] = house.until(worker, "x")
    assert tokens_of(told) == tokens_of(expected)


def test_what_was_computed_while_redis_was_away_is_told_when_it_is_back(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    from redis.exceptions import ConnectionError as Away
    from tinsmith_worker import link

    worker = house.worker()
    house.create("r")
    house.until(worker, "r:0")
    monkeypatch.setattr(link.time, "sleep", lambda seconds: None)
    scripts = worker._queue.link._scripts
    left = {"done": 3, "sample_done": 2}
    for name in left:
        real = scripts[name]

        def flaky(name: str = name, real: Callable[..., object] = real, **given: object) -> object:
            if left[name]:
                left[name] -= 1
                raise Away("Connection refused")
            return real(**given)

        monkeypatch.setitem(scripts, name, flaky)  # type: ignore[arg-type]
    house.learn("r", 1, 20)
    house.learn("r", 2, 20)
    house.sample("x")
    results = house.until(worker, "r:1", "r:2", house.step("r", 3), "x")
    assert not any(one.failed for one in results)
    assert left == {"done": 0, "sample_done": 0}


# Runs that end


def test_of_a_run_that_has_ended_nothing_is_kept(house: House) -> None:
    worker = house.worker(snapshot_steps=1)
    house.create("r")
    for seq in (1, 3, 5):
        house.until(worker, house.learn("r", seq), house.step("r", seq + 1))
        for _ in range(500):
            if not house.log("r"):
                break
            worker.turn()
        assert house.log("r") == []
    house.save("r", 7, "w")
    house.until(worker, "r:7")
    assert worker._runs._superseded.keys() == {"r"}  # it has replaced a snapshot
    house.step("r", 9)  # and waits for 8
    for _ in range(500):
        if worker._intake._gaps:
            break
        worker.turn()
    assert worker._intake._gaps.keys() == {"r"}
    house.call(house.bus.end_run("r", failure("finished")))
    worker._saver.close()
    for _ in range(500):
        if not worker._intake._homes:
            break
        worker.turn()
    worker._housekept = 0.0
    worker.turn()
    kept = [
        worker._intake._homes,
        worker._intake._gaps,
        worker._intake._news,
        worker._held,
        worker._training,
    ]
    kept += [worker._runs._resident, worker._runs._superseded, worker._runs._snapshots]
    kept += [worker._saver._open, worker._fetcher._reads, worker._scheduler.lines]
    assert not any(kept), kept
