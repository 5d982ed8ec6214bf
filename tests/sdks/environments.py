"""A virtual environment for each older SDK, below .sdks/, made once.

What the SDK needs is installed beside it as its version asks for. Only torch, which is large and which
the SDK itself does not ask for, is lent by the environment that the tests run in.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2] / ".sdks"
VERSIONS = (
    "0.36.0",
    "0.33.1",
    "0.30.4",
    "0.25.0",
    "0.22.7",
    "0.18.2",
    "0.16.1",
    "0.13.1",
    "0.9.0",
    "0.6.3",
)
"""Newest first; 0.38.0 is what `make test` runs."""
CURRENT, THIN = "0.38.0", "tinsmith"
COLUMNS = (CURRENT, THIN, *VERSIONS)
"""Of the table. The newest SDK and the thin client run where the tests run."""


def python_of(version: str) -> Path:
    """Its interpreter; the environment is made if it is not there."""
    if version in (CURRENT, THIN):
        return Path(sys.executable)
    folder = ROOT / version
    python, stamp = folder / "bin" / "python", folder / ".installed"
    if not stamp.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [python, "-m", "pip", "install", "-q", f"tinker=={version}"]
        subprocess.run(install, check=True)
        [packages] = folder.glob("lib/python3*/site-packages")
        (packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
        stamp.touch()
    return python


if __name__ == "__main__":
    for one in VERSIONS:
        python_of(one)
