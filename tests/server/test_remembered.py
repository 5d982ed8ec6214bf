"""What is remembered, what is not, and who shares one question."""

import asyncio

import pytest
from tinsmith_server import remembered as remembered_module
from tinsmith_server.remembered import Remembered


class Oracle:
    """Answers only when told to, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.may_answer = asyncio.Event()

    async def ask(self, key: str) -> str:
        self.asked.append(key)
        await self.may_answer.wait()
        if key == "wrong":
            raise LookupError(key)
        return f"answer {len(self.asked)}"


def test_who_asks_together_shares_one_question() -> None:
    async def flow() -> None:
        oracle = Oracle()
        remembered = Remembered(oracle.ask, seconds=60)
        waiting = [asyncio.create_task(remembered.get("a")) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # one who leaves does not take the others along
        oracle.may_answer.set()
        assert await asyncio.gather(*waiting[1:]) == ["answer 1"] * 2
        assert await remembered.get("a") == "answer 1"
        assert oracle.asked == ["a"]

    asyncio.run(flow())


def test_a_failure_is_asked_again() -> None:
    async def flow() -> None:
        oracle = Oracle()
        oracle.may_answer.set()
        remembered = Remembered(oracle.ask, seconds=60)
        for _ in range(2):
            with pytest.raises(LookupError):
                await remembered.get("wrong")
        assert oracle.asked == ["wrong", "wrong"]

    asyncio.run(flow())


def test_an_answer_that_was_forgotten_while_it_was_asked_is_not_kept() -> None:
    async def flow() -> None:
        oracle = Oracle()
        remembered = Remembered(oracle.ask, seconds=60)
        early = asyncio.create_task(remembered.get("a"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # the question is under way
        remembered.forget(lambda key, _: key == "a")
        oracle.may_answer.set()
        assert await early == "answer 1"
        assert await remembered.get("a") == "answer 2"

    asyncio.run(flow())


def test_time_and_number_bound_what_is_kept() -> None:
    async def flow() -> None:
        oracle = Oracle()
        oracle.may_answer.set()
        short = Remembered(oracle.ask, seconds=0)
        assert [await short.get("a"), await short.get("a")] == ["answer 1", "answer 2"]
        two = Remembered(oracle.ask, seconds=60, most=2)
        for key in "abcc":
            await two.get(key)
        assert oracle.asked == list("aaabc")
        await two.get("a")  # the oldest had left
        assert oracle.asked == list("aaabca")

    asyncio.run(flow())


def test_what_is_out_of_date_is_let_go_when_something_new_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr(remembered_module.time, "monotonic", lambda: clock[0])

    async def flow() -> None:
        oracle = Oracle()
        oracle.may_answer.set()
        remembered = Remembered(oracle.ask, seconds=60)
        for key in "ab":
            await remembered.get(key)
        clock[0] += 30
        await remembered.get("c")
        clock[0] += 30  # the time of a and b is over
        await remembered.get("d")
        assert list(remembered._known) == ["c", "d"]
        await remembered.get("c")
        assert oracle.asked == list("abcd")

    asyncio.run(flow())
