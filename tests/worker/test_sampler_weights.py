"""Which adapters stay at hand, and how long a folder may be on its way."""

from concurrent.futures import Future, wait
from pathlib import Path

import pytest
import torch
from tinsmith_worker import checkpoint_files, sampler_weights
from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.base_model import BaseModel, load
from tinsmith_worker.engine.optimizer import RunState
from tinsmith_worker.sampler_weights import WAIT_SECONDS, NotThere, SamplerWeights
from tinsmith_worker.store import Store

from tests.worker.tiny_models import save


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load(str(save("llama", tmp_path_factory.mktemp("llama"))), name="tiny")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def adapter_of(model: BaseModel, seed: int) -> Adapter:
    return Adapter.create(model, rank=2, seed=seed)


def write(store: Store, model: BaseModel, prefix: str, seed: int) -> Adapter:
    state = RunState(adapter_of(model, seed))
    store.write_folder(prefix, checkpoint_files.pack(state, "tiny", optimizer=False))
    return state.adapter


class Shelf(SamplerWeights):
    """Weights of which a test may wait for news."""

    def read(self, prefix: str) -> Adapter | None:
        """What is known once the store has been asked."""
        self.try_again()
        found = self.get(prefix)
        if found is None and (read := self._fetcher._reads.get(prefix, {}).get(prefix)):
            wait([read], 20)
            found = self.get(prefix)
        return found


def written() -> "Future[int]":
    done: Future[int] = Future()
    done.set_result(1)
    return done


def test_what_was_put_is_there_before_its_folder_is(model: BaseModel, store: Store) -> None:
    weights = Shelf(store, model, 2)
    adapter = adapter_of(model, 1)
    weights.put("a", adapter, Future())
    assert weights.get("a") is adapter


def test_a_folder_is_read_once_and_holds_the_same_numbers(model: BaseModel, store: Store) -> None:
    expected = write(store, model, "a", 1)
    weights = Shelf(store, model, 2)
    found = weights.read("a")
    assert found is not None
    assert torch.equal(found.row, expected.row)
    store.delete_folder("a")
    assert weights.read("a") is found


def test_the_least_used_leaves_and_its_samplers_are_told(model: BaseModel, store: Store) -> None:
    left: list[Adapter] = []
    weights = Shelf(store, model, 2, on_leave=left.append)
    for seed, prefix in enumerate("abc"):
        write(store, model, prefix, seed)
    a, b = weights.read("a"), weights.read("b")
    weights.read("a")
    weights.read("c")
    assert left == [b]
    assert weights.read("a") is a
    assert weights.read("b") is not b


def test_what_the_store_does_not_have_yet_stays_however_many_come(
    model: BaseModel, store: Store
) -> None:
    left: list[Adapter] = []
    weights = Shelf(store, model, 1, on_leave=left.append)
    opens = [Future() for _ in range(4)]  # type: ignore[var-annotated]
    adapters = [adapter_of(model, seed) for seed in range(4)]
    for name, adapter, done in zip("abcd", adapters, opens, strict=True):
        weights.put(name, adapter, done)
    assert left == []
    assert [weights.get(name) for name in "abcd"] == adapters
    for done in opens[:2]:
        done.set_result(1)
    weights.put("e", adapter_of(model, 9), written())
    assert left == adapters[:2]


def test_a_save_that_is_begun_again_replaces_what_it_had_put(
    model: BaseModel, store: Store
) -> None:
    left: list[Adapter] = []
    weights = Shelf(store, model, 2, on_leave=left.append)
    first, second = adapter_of(model, 1), adapter_of(model, 2)
    weights.put("a", first, written())
    weights.put("a", second, written())
    assert left == [first]  # or its blocks of keys and values would never be forgotten
    assert weights.read("a") is second


def test_a_folder_on_its_way_from_another_worker_has_its_time(
    model: BaseModel, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(sampler_weights.time, "monotonic", lambda: clock[0])
    weights = Shelf(store, model, 2)
    assert weights.read("a") is None
    clock[0] += WAIT_SECONDS - 1
    assert weights.read("a") is None
    write(store, model, "a", 1)
    assert weights.read("a") is not None
    assert weights.read("b") is None  # its own time begins when it is first asked for
    clock[0] += WAIT_SECONDS + 1
    with pytest.raises(NotThere):
        weights.read("b")
    assert weights.read("b") is None
    clock[0] += 2 * WAIT_SECONDS  # nobody waits for b any more
    assert weights.read("c") is None
    assert list(weights._missing_since) == ["c"]


def test_two_folders_that_do_not_come_are_both_given_up(
    model: BaseModel, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(sampler_weights.time, "monotonic", lambda: clock[0])
    weights = Shelf(store, model, 2)
    assert [weights.read(name) for name in "ab"] == [None, None]
    clock[0] += WAIT_SECONDS
    for name in "ab":
        with pytest.raises(NotThere):
            weights.read(name)


def test_a_store_out_of_reach_is_no_missing_folder(
    model: BaseModel, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(store, model, "a", 1)

    def unreachable(path: str) -> bytes:
        raise PermissionError("forbidden")

    weights = Shelf(store, model, 2)
    monkeypatch.setattr(store, "_read", unreachable)
    assert weights.read("a") is None
    assert weights.out_of_reach("a")
    assert not weights.news_of("a")
    monkeypatch.undo()
    assert weights.read("a") is not None
    assert not weights.out_of_reach("a")


def test_of_what_nobody_waits_for_nothing_is_kept(model: BaseModel, store: Store) -> None:
    write(store, model, "a", 1)
    weights = Shelf(store, model, 2)
    assert weights.get("a") is None
    weights.forget("a")
    assert weights._fetcher._reads == {}
