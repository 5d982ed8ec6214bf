"""The files that pages stand on, under names that change with their content, so a browser keeps them."""

import hashlib
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "static"
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


@cache
def asset(name: str) -> str:
    """Its address, with the beginning of its hash."""
    digest = hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()[:12]
    return f"/static/{digest}/{name}"


@cache
def known() -> frozenset[str]:
    return frozenset(one.name for one in FOLDER.iterdir() if one.suffix in TYPES)
