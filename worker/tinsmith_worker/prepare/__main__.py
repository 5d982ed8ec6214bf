"""`python -m tinsmith_worker.prepare NAME --models-dir DIR`: progress as JSON lines on stdout."""

import argparse
import json
import sys
from pathlib import Path

from tinsmith_worker.prepare import PREPARABLE, PrepareError, prepare


def say(**message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="tinsmith_worker.prepare")
    parser.add_argument("name")
    parser.add_argument("--models-dir", type=Path, required=True)
    parser.add_argument("--accept-license", action="store_true")
    arguments = parser.parse_args()
    try:
        folder = prepare(
            arguments.name,
            arguments.models_dir,
            lambda step, progress: say(step=step, progress=progress),
            arguments.accept_license,
        )
    except PrepareError as error:
        say(error=str(error))
        return 1
    say(folder=str(folder), served_name=PREPARABLE[arguments.name].served_name)
    return 0


raise SystemExit(main())
