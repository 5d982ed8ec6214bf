"""What a long benchmark has finished, so that one which stops goes on where it was.

A piece is written the moment that it is there, under `.bench`; pieces of other settings lie in another
folder and are not seen. The benchmark deletes the folder once its page is written.
"""

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

WORK = Path(__file__).parents[1] / ".bench"


class Kept:
    """Finished pieces by name, each a JSON object; safe to use from several threads."""

    def __init__(self, name: str, settings: Mapping[str, object], work: Path = WORK) -> None:
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        self.folder = work / f"{name}-{digest}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._path = self.folder / "pieces.jsonl"
        self._lock = threading.Lock()
        self._pieces, before = self._read()
        self._began = time.monotonic() - before

    @property
    def seconds(self) -> float:
        """That the benchmark has taken, the parts before a stop up to their last piece included."""
        return time.monotonic() - self._began

    def piece(self, name: str, make: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """The piece of an earlier part, or the one that `make` makes now."""
        if name in self._pieces:
            return self._pieces[name]
        made = dict(make())
        line = json.dumps({"name": name, "seconds": self.seconds, "piece": made})
        with self._lock, self._path.open("a") as file:
            file.write(f"{line}\n")
            file.flush()
            os.fsync(file.fileno())
            self._pieces[name] = made
        return made

    def forget(self) -> None:
        shutil.rmtree(self.folder)

    def _read(self) -> tuple[dict[str, Mapping[str, Any]], float]:
        """What a machine that went down tore is left out: it is made again, on a line of its own."""
        if not self._path.exists():
            return {}, 0.0
        whole = [line for line in self._path.read_text().splitlines(keepends=True) if _whole(line)]
        self._path.write_text("".join(whole))
        found = [json.loads(line) for line in whole]
        return {one["name"]: one["piece"] for one in found}, max(
            (one["seconds"] for one in found), default=0.0
        )


def _whole(line: str) -> bool:
    return line.endswith("}\n")
