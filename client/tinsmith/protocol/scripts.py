"""A queue's script as each room loads it: its own parts, behind the one that both rooms share."""

from pathlib import Path

_SHARED = Path(__file__).parent


def script(folder: Path, *parts: str) -> str:
    """The text of `parts` in order; `release` is the shared one: what a result no longer counts for."""
    return "\n".join(
        ((_SHARED if part == "release" else folder) / f"{part}.lua").read_text() for part in parts
    )
