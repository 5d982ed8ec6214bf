"""Whose turn it is: by hand."""

from tinsmith_worker.fair import Round


def served(round_: Round, costs: dict[str, int], times: int) -> list[str]:
    order = []
    for _ in range(times):
        name = round_.next(costs)
        round_.charge(name, costs[name])
        order.append(name)
    return order


def test_who_takes_twice_as_much_has_half_as_many_turns() -> None:
    assert served(Round(10), {"a": 20, "b": 10}, 6) == ["a", "b", "b", "a", "b", "b"]


def test_who_wants_nothing_for_a_while_has_saved_nothing_up() -> None:
    round_ = Round(10)
    assert served(round_, {"a": 10, "b": 10}, 2) == ["a", "b"]
    assert served(round_, {"a": 10}, 5) == ["a"] * 5
    assert sorted(served(round_, {"a": 10, "b": 10}, 4)) == ["a", "a", "b", "b"]


def test_a_debt_of_millions_of_rounds_is_passed_over_at_once() -> None:
    round_ = Round(1)
    assert served(round_, {"a": 10**12, "b": 10**12}, 4) == ["a", "b", "a", "b"]
