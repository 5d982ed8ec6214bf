"""The figures that runs came to, and the table of them in docs/cookbook.md.

Tests note figures; the page is written by running this module, which `make test-cookbook` does when every
recipe has passed. So a run of some of them leaves the page as it is.
"""

import json
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "cookbook.md"
FILE = Path(__file__).parents[2] / ".cookbooks" / "figures.json"
_MARK = "| run | figure | |\n|---|---|---|\n"


@dataclass(frozen=True)
class Figures:
    """By run, then by the figure's name; those of earlier sessions stay until they are measured again."""

    file: Path
    by_run: dict[str, dict[str, str]]

    @classmethod
    def read(cls, file: Path) -> "Figures":
        return cls(file, json.loads(file.read_text()) if file.exists() else {})

    def note(self, run: str, figure: str, value: str) -> None:
        self.by_run.setdefault(run, {})[figure] = value
        self.file.write_text(json.dumps(self.by_run, indent=1))

    def write_page(self) -> None:
        """The table is the page's end."""
        above = PAGE.read_text().split(_MARK)[0]
        rows = [
            f"| {run} | `{figure}` | {value} |\n"
            for run, figures in self.by_run.items()
            for figure, value in figures.items()
        ]
        PAGE.write_text(above + _MARK + "".join(rows))


if __name__ == "__main__":
    Figures.read(FILE).write_page()
