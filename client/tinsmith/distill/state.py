"""Where a run stands, in one small file beside the checkpoint that it names.

What was already drawn for the next step is kept too, so that a run that goes on has the curve of one
that was never stopped.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinsmith.distill.rollout import Rollout

_VERSION = 1


@dataclass(frozen=True)
class State:
    step: int
    """Steps done."""
    checkpoint: str
    settings: str
    """Digest of what must not change between the parts of a run."""
    drawn: Sequence[Rollout] | None
    """For the next step, where sampling runs ahead."""

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        body = {
            "version": _VERSION,
            "step": self.step,
            "checkpoint": self.checkpoint,
            "settings": self.settings,
            "drawn": None if self.drawn is None else [one.to_json() for one in self.drawn],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(body), encoding="utf-8")
        partial.replace(path)

    @classmethod
    def read(cls, path: Path, settings: str) -> "State | None":
        if not path.exists():
            return None
        body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if body.get("version") != _VERSION:
            raise ValueError(f"state: {path} was written by another version; start a new one.")
        if body["settings"] != settings:
            raise ValueError(
                f"state: {path} belongs to a run with another method, teacher, prompts or settings; name "
                "another file, or delete it to start anew."
            )
        drawn = body["drawn"]
        return cls(
            body["step"],
            body["checkpoint"],
            settings,
            None if drawn is None else [Rollout(**one) for one in drawn],
        )


def digest(*parts: object) -> str:
    return hashlib.sha256("\n".join(repr(part) for part in parts).encode()).hexdigest()
