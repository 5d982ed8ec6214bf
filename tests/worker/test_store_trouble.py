"""A store that is slow, out of reach or full: runs wait for it, and nobody waits for them."""

import threading
from collections.abc import Callable

import pytest
import torch
from tinsmith.protocol import keys
from tinsmith.protocol import wire_pb2 as pb
from tinsmith.protocol.distillation import TEACHERS_KEY, Teacher, encode_teachers
from tinsmith.protocol.jobs import Kind, LoadJob, encode
from tinsmith_worker import ops
from tinsmith_worker.fetcher import Fetcher
from tinsmith_worker.loop import Worker
from tinsmith_worker.store import Store, StoreUnavailable

from tests.worker.test_worker_loop import (
    House,
    house,  # noqa: F401
    learn_body,
    models,  # noqa: F401
    state_row,
    tokens_of,
    url,  # noqa: F401
)


class Reads:
    """Reading from the house's store can be made slow, and can fail."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.failing = False
        real = store.read_folder

        def read(prefix: str) -> dict[str, bytes]:
            assert self.gate.wait(20)
            if self.failing:
                raise StoreUnavailable("no route to host")
            return real(prefix)

        monkeypatch.setattr(store, "read_folder", read)


@pytest.fixture
def reads(house: House, monkeypatch: pytest.MonkeyPatch) -> Reads:  # noqa: F811
    return Reads(house.disk, monkeypatch)


def evicted(house: House) -> Worker:  # noqa: F811
    """A worker with room for one run; `old` has left it with a snapshot and two ops in its log."""
    worker = house.worker(max_resident_runs=1, snapshot_steps=1)
    house.create("old")
    house.learn("old", 1)
    house.until(worker, house.step("old", 2))
    while worker._runs._snapshots:
        worker.turn()
    for seq in (3, 4):
        house.until(worker, house.learn("old", seq, seed=seq))
    house.create("new")
    house.until(worker, "new:0")
    assert list(worker._runs._resident) == ["new"]
    return worker


@pytest.mark.parametrize("trouble", ["slow", "out of reach"])
def test_a_run_waits_for_its_snapshot_and_a_neighbour_does_not(
    house: House,  # noqa: F811
    reads: Reads,
    trouble: str,
) -> None:
    worker = evicted(house)
    if trouble == "slow":
        reads.gate.clear()
    else:
        reads.failing = True
    waiting = [house.learn("old", 5, seed=5), house.step("old", 6)]
    for seq in range(1, 4):
        house.until(worker, house.learn("new", seq, seed=seq))
    assert [house.result(one) for one in waiting] == [None, None]
    reason = worker._queue.redis.get(keys.waits("old"))
    assert (reason is not None) == (trouble == "out of reach")
    reads.failing = False
    reads.gate.set()
    assert not any(one.failed for one in house.until(worker, *waiting))
    row = state_row(worker, "old")
    house.create("twin")
    house.learn("twin", 1)
    house.step("twin", 2)
    for seq in (3, 4, 5):
        house.learn("twin", seq, seed=seq)
    house.until(worker, house.step("twin", 6))
    assert torch.equal(state_row(worker, "twin"), row)


def test_a_load_waits_for_the_store_and_then_gives_what_was_saved(
    house: House,  # noqa: F811
    reads: Reads,
) -> None:
    worker = house.worker()
    house.create("r", "neighbour")
    house.learn("r", 1)
    house.step("r", 2)
    house.until(worker, house.save("r", 3, "kept", behind=False))
    saved = state_row(worker, "r")
    house.learn("r", 4)
    house.until(worker, house.step("r", 5))
    reads.failing = True
    body = encode(LoadJob(prefix="kept", path="kept", optimizer=False, base_model="tiny"))
    load = house.submit("r", 6, Kind.LOAD_WEIGHTS, body)
    house.until(worker, house.learn("neighbour", 1))
    assert house.result(load) is None
    reads.failing = False
    [told] = house.until(worker, load)
    assert not told.failed
    assert torch.equal(state_row(worker, "r"), saved)


def test_an_idle_run_is_snapshot_after_its_time(house: House) -> None:  # noqa: F811
    worker = house.worker(snapshot_seconds=0.0)
    house.create("r")
    house.until(worker, "r:0")
    while house.log("r"):
        worker.turn()
    assert worker._queue.record("r").snapshot_seq == 0


def test_a_stop_finishes_what_is_in_work_and_leaves_nothing_to_replay(
    house: House,  # noqa: F811
) -> None:
    leaving, heir = house.worker("a"), house.worker("b")
    house.create("r")
    house.until(leaving, "r:0")
    gradient, step = house.learn("r", 1, 20), house.step("r", 2)
    leaving._take()
    leaving._begin()
    leaving.drain()
    assert house.result(gradient) is not None
    leaving.leave()
    house.adopt(heir)
    assert not house.until(heir, step)[0].failed


def test_whoever_has_no_more_use_for_a_folder_forgets_it(tmp_path: object) -> None:
    store = Store(str(tmp_path))
    store.write_folder("there", {"a": b"x"})
    rung = threading.Semaphore(0)
    fetcher = Fetcher(store, lambda run_id: rung.release())
    with pytest.raises(Exception, match="there"):
        fetcher.files("r", "there")
    assert rung.acquire(timeout=20)
    assert fetcher.news_for("r")
    assert fetcher.files("r", "there") == {"a": b"x"}
    fetcher.forget("r")
    assert fetcher._reads == {}
    fetcher.close()


def test_a_named_save_waits_for_the_store_and_a_neighbour_does_not(
    house: House,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = house.worker()
    house.create("r", "neighbour")
    house.until(worker, "r:0", "neighbour:0")
    with monkeypatch.context() as cut:
        cut.setattr(house.disk, "write_folder", out_of_reach)
        named = house.save("r", 1, "kept", behind=False)
        for seq in range(1, 4):
            house.until(worker, house.learn("neighbour", seq, seed=seq))
        turn_until(worker, lambda: worker._queue.redis.exists(keys.waits("r")))
        assert house.result(named) is None
    [told] = house.until(worker, named)
    assert not told.failed
    assert house.disk.has_folder("kept")


def test_with_much_waiting_for_the_store_a_save_behind_its_answer_is_answered_after_it(
    house: House,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = house.worker()
    monkeypatch.setattr(ops, "_MOST_BEHIND_BYTES", 1)
    house.create("r")
    house.until(worker, "r:0")
    with monkeypatch.context() as cut:
        cut.setattr(house.disk, "write_folder", out_of_reach)
        house.until(worker, house.save("r", 1, "first"))
        second = house.save("r", 2, "second")
        turn_until(worker, lambda: worker._queue.redis.exists(keys.waits("r")))
        assert house.result(second) is None
    house.until(worker, second)
    assert house.disk.has_folder("first")
    assert house.disk.has_folder("second")


def test_a_teacher_is_waited_for_by_those_who_learn_from_it_alone(
    house: House,  # noqa: F811
    reads: Reads,
) -> None:
    worker = house.worker()
    house.create("teacher", "pupil", "neighbour")
    house.until(worker, house.save("teacher", 1, "taught", behind=False))
    worker._desks["tiny"].weights._held.clear()
    reads.failing = True
    lesson = house.submit("pupil", 1, Kind.FORWARD_BACKWARD, lesson_body("taught"), 20)
    for seq in range(1, 4):
        house.until(worker, house.learn("neighbour", seq, seed=seq))
    turn_until(worker, lambda: worker._queue.redis.exists(keys.waits("pupil")))
    assert house.result(lesson) is None
    reads.failing = False
    [told] = house.until(worker, lesson)
    assert not told.failed
    gone = house.submit("pupil", 2, Kind.FORWARD_BACKWARD, lesson_body("nowhere"), 20)
    worker._desks["tiny"].weights._missing_since["nowhere"] = 0.0  # its time is over
    [told] = house.until(worker, gone)
    assert b"not there any more" in told.data


def test_what_was_saved_in_an_outage_is_sampled_by_the_heir_of_its_worker(
    house: House,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, heir = house.worker("a"), house.worker("b")
    house.create("r")
    house.learn("r", 1)
    house.until(first, house.step("r", 2))
    with monkeypatch.context() as cut:
        cut.setattr(house.disk, "write_folder", out_of_reach)
        house.until(first, house.save("r", 3, "answered"))
        [before] = house.until(first, house.sample("before", "answered"))
        house.adopt(heir)
        house.until(heir, house.learn("r", 4))
        [after] = house.until(heir, house.sample("after", "answered"))
        assert not house.disk.has_folder("answered")
    assert tokens_of(after) == tokens_of(before)
    turn_until(heir, lambda: house.disk.has_folder("answered"))


def test_a_worker_begins_in_an_outage_and_shares_its_tokenizer_later(
    house: House,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = house.worker()
    with monkeypatch.context() as cut:
        cut.setattr(house.disk, "write_folder", out_of_reach)
        worker.keep("tokenizers/x", {"tokenizer.json": b"{}"})
        house.create("r")
        house.until(worker, "r:0")
    turn_until(worker, lambda: house.disk.has_folder("tokenizers/x"))


def turn_until(worker: Worker, seen: Callable[[], object]) -> None:
    for _ in range(500):
        if seen():
            return
        worker.turn()
    raise AssertionError("not seen in 500 turns")


def out_of_reach(prefix: str, files: dict[str, bytes]) -> int:
    raise StoreUnavailable("no route to host")


def lesson_body(teacher: str) -> bytes:
    request = pb.ForwardBackwardRequest.FromString(learn_body(20, 1, loss_fn="x_distill_jsd"))
    request.loss_fn_config_v2["teacher"].text = teacher
    request.loss_fn_config_v2[TEACHERS_KEY].text = encode_teachers(
        [Teacher(name=teacher, prefix=teacher)]
    )
    return request.SerializeToString()
