"""Writes beside the loop: in order, repeated where promised, open until the store has them."""

import threading
from collections.abc import Iterator

import pytest
from tinsmith_worker.saver import Saver, Until
from tinsmith_worker.store import StoreRefused, StoreUnavailable


class Disk:
    """Notes what it is given; full as many times as asked, and slow while the gate is shut."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.full = 0
        self.away = 0
        self.deleted: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def write_folder(self, prefix: str, files: dict[str, bytes]) -> int:
        assert self.gate.wait(20)
        if self.full:
            self.full -= 1
            raise StoreRefused("no space left on device")
        if self.away:
            self.away -= 1
            raise StoreUnavailable("connection refused")
        self.written.append(prefix)
        return sum(len(data) for data in files.values())

    def has_folder(self, prefix: str) -> bool:
        return prefix in self.written

    def delete_folder(self, prefix: str) -> None:
        if self.away:
            raise StoreUnavailable("connection refused")
        self.deleted.append(prefix)


class Bell:
    """Rings; a test may wait for it."""

    def __init__(self) -> None:
        self.rung: list[str] = []
        self._heard = threading.Semaphore(0)

    def __call__(self, run_id: str) -> None:
        self.rung.append(run_id)
        self._heard.release()

    def wait(self) -> None:
        assert self._heard.acquire(timeout=20)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def bell() -> Bell:
    return Bell()


@pytest.fixture
def saver(disk: Disk, bell: Bell) -> Iterator[Saver]:
    made = Saver(disk, bell)  # type: ignore[arg-type]
    yield made
    disk.gate.set()
    made.close()


def three_bytes() -> dict[str, bytes]:
    return {"a": b"x", "b": b"yz"}


def test_folders_are_written_in_order_and_a_run_has_open_writes_until_they_are(
    saver: Saver, disk: Disk, bell: Bell
) -> None:
    disk.gate.clear()
    first, second = saver.write("r", "1", three_bytes), saver.write("r", "2", three_bytes)
    other = saver.write("q", "3", three_bytes)
    assert saver.writes_for("r")
    assert not saver.writes_for("stranger")
    disk.gate.set()
    assert [one.result(20) for one in (first, second, other)] == [3, 3, 3]
    for _ in range(3):
        bell.wait()
    assert disk.written == ["1", "2", "3"]
    assert bell.rung == ["r", "r", "q"]
    assert not saver.writes_for("r")
    assert not saver.writes_for("q")
    assert not saver._open  # a worker sees many runs


def test_a_write_that_may_fail_says_so_and_is_not_repeated(
    saver: Saver, disk: Disk, bell: Bell
) -> None:
    disk.full = 1
    with pytest.raises(StoreUnavailable):
        saver.write("r", "1", three_bytes).result(20)
    bell.wait()
    assert not saver.writes_for("r")
    saver.try_again()
    saver.close()
    assert disk.written == []


def test_a_write_that_must_not_fail_stays_open_until_it_is_through(
    saver: Saver, disk: Disk, bell: Bell
) -> None:
    disk.full = 2
    stubborn = saver.write("r", "1", three_bytes, until=Until.WRITTEN)
    after = saver.write("r", "2", three_bytes)  # fails, once and for all
    assert isinstance(after.exception(20), StoreUnavailable)
    assert not stubborn.done()
    assert saver.writes_for("r")
    saver.try_again()
    assert stubborn.result(20) == 3
    bell.wait()
    bell.wait()
    assert not saver.writes_for("r")
    assert disk.written == ["1"]


def test_a_write_outlasts_an_outage_and_not_a_refusal(saver: Saver, disk: Disk, bell: Bell) -> None:
    disk.away = 2
    patient = saver.write("r", "1", three_bytes, until=Until.REFUSED, held_bytes=9)
    assert (
        saver.write("q", "2", three_bytes).exception(20) is not None
    )  # and so the first has failed
    assert saver.out_of_reach("r")
    assert not saver.out_of_reach("q")
    assert saver.held_bytes == 9
    saver.try_again()
    assert patient.result(20) == 3
    bell.wait()
    bell.wait()
    assert not saver.out_of_reach("r")
    assert saver.held_bytes == 0
    disk.full = 1
    refused = saver.write("r", "3", three_bytes, until=Until.REFUSED)
    assert isinstance(refused.exception(20), StoreRefused)
    assert disk.written == ["1"]


def test_what_is_there_or_on_its_way_is_not_written_again(saver: Saver, disk: Disk) -> None:
    disk.gate.clear()
    first = saver.write("r", "1", three_bytes)
    assert saver.write("r", "1", three_bytes, unless_there=True) is first
    disk.gate.set()
    assert first.result(20) == 3
    again = saver.write("r", "1", three_bytes, until=Until.WRITTEN, unless_there=True)
    assert again.result(20) == 0
    assert disk.written == ["1"]


def test_what_is_deleted_goes_in_its_turn_or_stays(saver: Saver, disk: Disk) -> None:
    saver.write("r", "1", three_bytes)
    saver.delete("1")
    saver.write("r", "2", three_bytes).result(20)
    assert disk.deleted == ["1"]
    disk.away = 1
    saver.delete("2")
    saver.close()
    assert disk.deleted == ["1"]


def test_closing_in_an_outage_asks_once(saver: Saver, disk: Disk) -> None:
    disk.away = 5
    disk.gate.clear()
    writes = [saver.write("r", str(n), three_bytes, until=Until.WRITTEN) for n in range(3)]
    disk.gate.set()
    saver.close()
    assert not any(one.done() for one in writes)
    assert disk.away >= 2  # the first said it for the others, unless they were under way before


def test_files_that_cannot_be_made_are_told_even_to_a_write_that_must_not_fail(
    saver: Saver, bell: Bell
) -> None:
    def broken() -> dict[str, bytes]:
        raise ValueError("of ours")

    answer = saver.write("r", "1", broken, until=Until.WRITTEN)
    assert isinstance(answer.exception(20), ValueError)
    bell.wait()
    assert not saver.writes_for("r")


def test_closing_tries_everything_once_more_and_leaves_what_fails_open(
    saver: Saver, disk: Disk
) -> None:
    disk.gate.clear()
    disk.full = 1
    stubborn = saver.write("r", "1", three_bytes, until=Until.WRITTEN)
    fine = saver.write("q", "2", three_bytes)
    disk.gate.set()
    saver.close()
    assert fine.result(0) == 3
    assert not stubborn.done()
    assert saver.writes_for("r")
    assert not saver.writes_for("q")
