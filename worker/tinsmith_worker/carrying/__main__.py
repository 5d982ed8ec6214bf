"""One piece of work a process: {"do": ..., ...} on stdin; lines of JSON on stdout.

Each line is {"progress", "note"}; the last one is {"result"}, or {"error"} with a sentence for the user.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from tinsmith_worker.carrying.merge import merge
from tinsmith_worker.carrying.take_in import take_in
from tinsmith_worker.engine.values import InvalidInput
from tinsmith_worker.settings import Settings, SettingsError
from tinsmith_worker.store import FolderDamaged, Store

_WORK: dict[str, Callable[..., dict[str, Any]]] = {"merge": merge, "take_in": take_in}


def main() -> None:
    asked: dict[str, Any] = msgspec.json.decode(sys.stdin.buffer.read())
    try:
        _tell({"result": _do(asked)})
    except (InvalidInput, SettingsError) as error:
        _tell({"error": str(error)})
    except FolderDamaged:
        _tell({"error": "path: the files of this checkpoint are not whole any more."})


def _do(asked: dict[str, Any]) -> dict[str, Any]:
    settings = Settings.from_environment({"TINSMITH_REDIS_URL": "unused", **os.environ})
    work, base_model = _WORK[asked.pop("do")], asked["base_model"]
    folder = settings.models.get(base_model)
    if folder is None:
        raise InvalidInput(
            f"base_model: the background process does not know {base_model!r}; its TINSMITH_MODELS "
            "must name what the workers' names."
        )
    return work(Store(settings.store_url), folder, **asked, report=_report)


def _report(progress: float, note: str) -> None:
    _tell({"progress": progress, "note": note})


def _tell(line: dict[str, Any]) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
