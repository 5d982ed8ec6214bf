"""What the route-planning benchmark says of its figures, on figures made up here."""

import itertools

from benchmarks.distill import METHODS, Curve, chosen, rows, table, verdicts
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
    assert all(line in table(made, 0.9) for line in said)
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
