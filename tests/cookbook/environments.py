"""A virtual environment for the cookbook, below .cookbooks/, made once.

The cookbook goes in by itself: one of its requirements, `tml-renderers`, is imported for two model
families only, which do not run here. torch, transformers, datasets and the SDK are lent by the
environment that the tests run in.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2] / ".cookbooks"
VERSION, OLDER = "0.6.1", "0.5.8"
NEEDS = (
    "blobfile>=3",
    "chz>=0.4",
    "cloudpickle>=3",
    "math-verify>=0.5",
    "pillow>=10",
    "pylatexenc>=2",
    "pyrage>=1.4",
    "rich>=13",
    "sympy>=1.12",
    "termcolor>=2",
    "tiktoken>=0.12",
)
ITS_OWN = {OLDER: ("transformers==5.5.4",)}
"""What a version asks for that the tests' environment has in another version."""


def python_of(version: str) -> Path:
    """Its interpreter; the environment is made if it is not there."""
    folder = ROOT / version
    python, stamp = folder / "bin" / "python", folder / ".installed"
    if not stamp.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        [packages] = folder.glob("lib/python3*/site-packages")
        (packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
        pip = [python, "-m", "pip", "install", "-q"]
        subprocess.run([*pip, "--no-deps", f"tinker_cookbook=={version}"], check=True)
        subprocess.run([*pip, *NEEDS, *ITS_OWN.get(version, ())], check=True)
        stamp.touch()
    return python


def package_of(version: str) -> Path:
    [package] = (ROOT / version).glob("lib/python3*/site-packages/tinker_cookbook")
    return package
