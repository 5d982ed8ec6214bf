"""A file system of its own for the store, which can be filled to the last byte or made read-only."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SIZE = "256m"
_TROUBLE_SECONDS = 3.0


class CannotMount(Exception):
    """This machine does not let us make a file system."""


class SmallDisk:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        """For a while nothing more fits: every write fails with ENOSPC."""
        ballast = self.folder / "ballast"
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 20))
            except OSError:
                time.sleep(_TROUBLE_SECONDS)
        ballast.unlink()

    def refuse(self) -> None:
        """For a while it can be read and not written: every write fails with EROFS."""
        self._mount("remount,ro")
        time.sleep(_TROUBLE_SECONDS)
        self._mount("remount,rw")

    def _mount(self, options: str) -> None:
        subprocess.run(["mount", "-o", options, str(self.folder)], check=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(folder)], capture_output=True
    )
    if made.returncode:
        raise CannotMount("mounting a small file system needs root")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
