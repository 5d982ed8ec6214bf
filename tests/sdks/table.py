"""The compatibility table, from what the tests found."""

import json
from collections.abc import Mapping
from pathlib import Path

from tests.sdks.environments import COLUMNS, ROOT

RESULTS = ROOT / "results"
"""What came of each row, a file a column."""
_PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
_DELETES = "tinker checkpoint delete {another} -y"
_LIST = "A mistake of that SDK: `delete` calls its own command `list` where Python's is meant."
_LOOP = "A mistake of that SDK: this `_async` form can be awaited on the SDK's own event loop only."
_AUDITS = ("RestClient.get_audit_log_async", "AdminClient.get_audit_log_async")
EXCEPTIONS = {
    **{(_DELETES, version): _LIST for version in ("0.18.2", "0.16.1")},
    **{
        (method, version): _LOOP
        for method in _AUDITS
        for version in ("0.36.0", "0.33.1", "0.30.4", "0.25.0", "0.22.7")
    },
}
"""By method and version: what does not work, and why."""

_HEAD = """# Compatibility

Written by `make test-sdks`: each cell is what that method did when that version of the official SDK, unpatched and
in an environment of its own, called it against a running service; `tinsmith` is the thin client of this repository.
**x** works; blank: that version has no such method. Every public method has a row (a test compares them with what
each version has), but for what the SDK keeps to itself: `holder`, `get_telemetry`, `on_queue_state_change`.

"""


def render(results: Mapping[str, Mapping[str, str]]) -> str:
    """Methods down, versions across, newest first."""
    versions = list(results)
    lines = [
        "| | " + " | ".join(versions) + " |",
        "|---|" + "---|" * len(versions),
    ]
    notes: list[str] = []
    for name in next(iter(results.values())):
        if all(rows[name] == "absent" for rows in results.values()):
            continue
        cells = [_cell(name, version, results[version][name], notes) for version in versions]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    works = sum(answer == "works" for rows in results.values() for answer in rows.values())
    lines.append("")
    lines += [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    lines.append(f"\n{works} cells work.")
    return _HEAD + "\n".join(lines) + "\n" + _REFUSED


def _cell(name: str, version: str, answer: str, notes: list[str]) -> str:
    if answer == "works":
        return "x"
    if answer == "absent":
        return ""
    note = EXCEPTIONS.get((name, version), answer)
    if note not in notes:
        notes.append(note)
    return f"({notes.index(note) + 1})"


_REFUSED = """
Refused with a sentence, whatever the version: image and audio chunks (the models here read text), full fine-tuning
(no public method of the SDK asks for it), `weights_access_token` (publish or copy the checkpoint instead), and
`tinker checkpoint push-hf`, which needs a hub. `dimuon` and `stable_reinforce` run rules of our own, because
theirs are not published: see [losses.md](losses.md). SDKs that know no sessions (0.1.5) are not served.
"""


if __name__ == "__main__":
    found = {one: json.loads((RESULTS / f"{one}.json").read_text()) for one in COLUMNS}
    _PAGE.write_text(render(found))
