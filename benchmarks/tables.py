"""Puts the recorded rows into docs/performance.md, between its markers, so that no figure is typed.

    <!-- rows: training, limit -->
    <!-- end -->

holds a table of the rows whose names begin with `training:` or `limit:`, in the order in which they
are asked for; `<!-- machine -->` and `<!-- gpu machine -->` hold what they were measured on. `--check` says whether the page
is what the results make of it.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.harness import LATEST, RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
MARKED = re.compile(
    r"(?P<begin><!-- (rows: (?P<kinds>[^>]+?)|(?P<machine>(gpu )?machine)) -->\n)"
    r".*?(?P<end><!-- end -->)",
    re.DOTALL,
)
Recorded = Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    rows: Sequence[Recorded]
    machines: Mapping[str, Recorded]
    """`machine` and `gpu machine`; empty where nothing was measured."""

    @classmethod
    def read(cls) -> Self:
        rows = [row for path in (LATEST, RESULTS / "gpu.json") for row in _read(path, [])]
        return cls(
            rows,
            {
                "machine": _read(RESULTS / "machine.json", {}),
                "gpu machine": _read(RESULTS / "gpu_machine.json", {}),
            },
        )


def rendered(page: str, results: Results) -> str:
    """The page with every marked part made anew."""

    def fill(found: re.Match[str]) -> str:
        if found["kinds"]:
            inside = _table(results.rows, found["kinds"].split(", "))
        else:
            inside = _machine(results.machines[found["machine"]])
        return f"{found['begin']}{inside}{found['end']}"

    return MARKED.sub(fill, page)


def _table(rows: Sequence[Recorded], kinds: Sequence[str]) -> str:
    chosen = [
        (row["name"].split(": ", 1)[1], row)
        for kind in kinds
        for row in sorted(rows, key=_natural)
        if row["name"].startswith(f"{kind}: ")
    ]
    if not chosen:
        return "not measured yet\n"
    lines = ["| | ours | other | unit | ratio | floor |", "|---|---|---|---|---|---|"]
    lines += [_line(name, row) for name, row in chosen]
    return "\n".join(lines) + "\n"


def _natural(row: Recorded) -> list[tuple[float, str]]:
    """Numbers in a name by their size: 64 before 256."""
    parts = re.split(r"(\d+(?:\.\d+)?)", row["name"])
    return [(float(part), "") if index % 2 else (0.0, part) for index, part in enumerate(parts)]


def _line(name: str, row: Recorded) -> str:
    floor, ratio = row["floor"], f"{row['ratio']:.3g}" if row["ours"] else "-"
    if floor is None:
        return _cells(name, row, ratio, "")
    mark = "" if row["ratio"] >= floor else " (below)"
    return _cells(name, row, ratio, f"{floor:g}{mark}")


def _cells(name: str, row: Recorded, ratio: str, floor: str) -> str:
    ours, other = (f"{row[side]:.4g}" for side in ("ours", "other"))
    return f"| {name} | {ours} | {other} | {row['unit']} | {ratio} | {floor} |"


def _machine(machine: Recorded) -> str:
    if not machine:
        return "not measured yet\n"
    return "".join(
        f"- {name.replace('_', ' ')}: {_told(value)}\n" for name, value in machine.items()
    )


def _told(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _read(path: Path, otherwise: Any) -> Any:
    return json.loads(path.read_text()) if path.exists() else otherwise


def main() -> None:
    page = PAGE.read_text()
    made = rendered(page, Results.read())
    if "--check" in sys.argv[1:]:
        sys.exit(
            made != page and "docs/performance.md is not what the results say: make bench-page"
        )
    PAGE.write_text(made)


if __name__ == "__main__":
    main()
