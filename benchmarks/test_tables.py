"""The page holds what the results say, and nothing that was typed."""

import re
from pathlib import Path

from benchmarks.tables import PAGE, Results, rendered

ROWS = [
    {"name": "training: a", "ours": 1, "other": 3.5, "unit": "ms", "ratio": 3.5, "floor": 3.0},
    {"name": "training: b", "ours": 2, "other": 3, "unit": "ms", "ratio": 1.5, "floor": 2.0},
    {"name": "limit: c", "ours": 2, "other": 1, "unit": "ms", "ratio": 0.5, "floor": None},
]
NO_MACHINES: dict[str, dict[str, object]] = {"machine": {}, "gpu machine": {}}
EMPTY = "before\n<!-- rows: limit, training -->\n<!-- end -->\nafter\n"


def filled(page: str, rows: list[dict[str, object]]) -> str:
    return rendered(page, Results(rows, NO_MACHINES))


def test_rows_stand_in_the_order_of_the_marker_and_say_when_a_floor_is_missed():
    lines = filled(EMPTY, ROWS).splitlines()
    assert lines[0] == "before"
    assert lines[-1] == "after"
    assert lines[4:7] == [
        "| c | 2 | 1 | ms | 0.5 |  |",
        "| a | 1 | 3.5 | ms | 3.5 | 3 |",
        "| b | 2 | 3 | ms | 1.5 | 2 (below) |",
    ]


def test_the_points_of_a_curve_stand_by_their_size():
    names = ["growth: rank 128", "growth: rank 8", "growth: share 0.5", "growth: share 0.125"]
    rows = [ROWS[0] | {"name": name} for name in names]
    lines = filled("<!-- rows: growth -->\n<!-- end -->\n", rows).splitlines()[3:-1]
    shown = [line.split(" | ")[0] for line in lines]
    assert shown == ["| rank 8", "| rank 128", "| share 0.125", "| share 0.5"]


def test_a_measured_zero_has_no_ratio_to_show():
    row = {
        "name": "equality: a",
        "ours": 0,
        "other": 1e-5,
        "unit": "nats",
        "ratio": 1e6,
        "floor": 1.0,
    }
    page = filled("<!-- rows: equality -->\n<!-- end -->\n", [row])
    assert "| a | 0 | 1e-05 | nats | - | 1 |" in page


def test_new_rows_replace_the_old_ones():
    assert filled(filled(EMPTY, ROWS), ROWS[:2]) == filled(EMPTY, ROWS[:2])


def test_without_rows_or_a_machine_the_page_says_that_nothing_was_measured():
    page = "<!-- machine -->\n<!-- end -->\n" + EMPTY
    assert filled(page, []).count("not measured yet") == 2


def test_each_machine_has_its_own_place():
    page = "<!-- gpu machine -->\n<!-- end -->\n<!-- machine -->\n<!-- end -->\n"
    machines = {"machine": {"cores": 2}, "gpu machine": {"gpu_and_driver": "H200, 570"}}
    lines = rendered(page, Results([], machines)).splitlines()
    assert lines[1] == "- gpu and driver: H200, 570"
    assert lines[4] == "- cores: 2"


def test_the_page_is_what_the_results_make_of_it():
    page = PAGE.read_text()
    assert rendered(page, Results.read()) == page


def test_every_kind_of_row_has_its_place_in_the_page():
    scripts = [path.read_text() for path in Path(__file__).parent.glob("bench_*.py")]
    recorded = {kind for text in scripts for kind in re.findall(r'"(\w+): ', text)}
    shown = re.findall(r"<!-- rows: ([^>]+) -->", PAGE.read_text())
    assert recorded == {kind for kinds in shown for kind in kinds.split(", ")}
