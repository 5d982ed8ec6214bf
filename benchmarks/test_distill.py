"""What the route-planning benchmark says of its figures, on figures made up here."""

import itertools
import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmarks import distill_page
from benchmarks.distill import METHODS, Curve, chosen, lines, rows, told, verdicts
from benchmarks.kept import Kept
from benchmarks.routes import DEGREE, HOPS, NODES, Routes


def curves(**scores: list[float]) -> list[Curve]:
    return [
        Curve(method, 1e-2, seed, [0, 10], [0.1, score], known=score)
        for method, each in scores.items()
        for seed, score in enumerate(each, 1)
    ]


def test_the_rate_is_chosen_on_known_questions() -> None:
    tried = [
        Curve("full", 1e-3, 0, [0], [0.9], known=0.2),
        Curve("full", 2e-3, 0, [0], [0.1], known=0.3),
    ]
    assert chosen(tried) == {"full": 2e-3}


def test_a_gap_is_claimed_only_where_every_seed_agrees() -> None:
    made = curves(
        sft=[0.60, 0.62, 0.64], sampled=[0.40, 0.42, 0.44], full=[0.70, 0.72, 0.63], jsd=[0.1] * 3
    )
    said = verdicts(made)
    assert (
        "- Held-out questions, full - sft: +6.3 points; the seeds do not separate them; "
        "the floor of 8 does not hold."
    ) in said
    assert (
        "- Known questions, full - sampled: +26.3 points; every seed agrees; the floor of 25 holds."
    ) in said
    assert len(said) == 2 * (len(METHODS) - 1)
    assert all(line in told(made, 0.9, 60.0) for line in said)
    assert [row.ratio >= 1 for row in rows(made)] == [False, True]


def test_a_route_is_edges_that_end_at_the_goal() -> None:
    routes = Routes()
    assert all(len(edges) == DEGREE for edges in routes.edges)
    assert sum(len(some) for some in routes.by_question.values()) == NODES * DEGREE**HOPS
    question = routes.held_out[0]
    route = routes.by_question[question][0]
    assert routes.valid(question, route)
    assert not routes.valid(question, route[:-1])
    other = next(goal for goal in range(NODES) if goal != question[1])
    assert not routes.valid((question[0], other), route)
    path = [question[0], *route]
    for place, (before, after) in enumerate(itertools.pairwise(path)):
        far = next(node for node in range(NODES) if node not in {*routes.edges[before], after})
        assert not routes.valid(question, [*route[:place], far, *route[place + 1 :]])
    assert not {*routes.held_out} & {*routes.known}


def test_the_teacher_is_taught_the_share_of_every_next_node() -> None:
    routes = Routes()
    question = routes.known[0]
    tokens = routes.draw(random.Random(0), [question], 4)
    told = routes.shares(tokens)
    for row, shares in zip(tokens.tolist(), told, strict=True):
        for hop in range(HOPS):
            past = tuple(row[3 : 3 + hop])
            left = [way for way in routes.by_question[question] if way[:hop] == past]
            counted = Counter(way[hop] for way in left)
            expected = torch.zeros(len(shares[hop]))
            for node, times in counted.items():
                expected[node] = times / len(left)
            torch.testing.assert_close(shares[hop], expected)


def test_a_stopped_benchmark_goes_on_with_what_it_had(tmp_path: Path) -> None:
    def fails() -> dict[str, object]:
        raise ConnectionError("the worker has died")

    first = Kept("one", {"steps": 3}, tmp_path)
    assert first.piece("full 1", lambda: {"score": 0.5}) == {"score": 0.5}
    with pytest.raises(ConnectionError):
        first.piece("full 2", fails)
    with next(first.folder.glob("*.jsonl")).open("a") as file:
        file.write('{"name": "full 3", "piece": {"sco')  # torn by a machine that went down
    again = Kept("one", {"steps": 3}, tmp_path)
    assert again.piece("full 1", fails) == {"score": 0.5}
    assert again.piece("full 3", lambda: {"score": 0.7}) == {"score": 0.7}
    assert Kept("one", {"steps": 3}, tmp_path).piece("full 3", fails) == {"score": 0.7}
    with pytest.raises(ConnectionError):
        Kept("one", {"steps": 4}, tmp_path).piece("full 1", fails)
    again.forget()
    assert not again.folder.exists()


def test_the_page_is_filled_between_its_marks_alone(tmp_path: Path) -> None:
    made = tmp_path / "page.md"
    made.write_text("before\n<!-- here -->\nold\n<!-- end here -->\nafter\n")
    distill_page.fill("here", "new \\1", made)
    assert made.read_text() == "before\n<!-- here -->\nnew \\1\n<!-- end here -->\nafter\n"
    with pytest.raises(ValueError, match="marked there"):
        distill_page.fill("there", "new", made)


def test_a_picture_for_light_pages_and_one_for_dark(tmp_path: Path) -> None:
    made = curves(**{method: [0.1, 0.2] for method in METHODS})
    distill_page.draw(lines(made), "valid, %", "some", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some-dark.png", "some-light.png"]
