"""Every public method, by every SDK, against the real service; and the table that comes of it.

`make test-sdks` runs it. What an old version cannot do here stands in EXCEPTIONS with its reason, and
anything else that does not work is a failure.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.conftest import Service
from tests.contract.conftest import service as service
from tests.sdks.environments import CURRENT, ROOT, VERSIONS, python_of
from tests.sdks.table import EXCEPTIONS, render

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "docs" / "compatibility.md"
_LIMIT_SECONDS = 600


@pytest.fixture(scope="module")
def results() -> Iterator[Path]:
    """A file for each version that ran; the table is written when all of them have."""
    folder = ROOT / "results"
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    files = [folder / f"{version}.json" for version in (CURRENT, *VERSIONS)]
    if all(file.exists() for file in files):
        TABLE.write_text(render({file.stem: json.loads(file.read_text()) for file in files}))


@pytest.mark.parametrize("version", [CURRENT, *VERSIONS])
def test_every_method_works_or_says_why_not(
    version: str, service: Service, results: Path, tmp_path: Path
) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "TINKER_BASE_URL": service.url,
        "TINKER_API_KEY": service.new_key(f"sdk-{version}"),
        "TINKER_TELEMETRY": "0",
        "OMP_NUM_THREADS": "1",
        "SDK_VERSION": version,
    }
    done = subprocess.run(
        [python_of(version), HERE / "exercise.py"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=_LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout)["rows"]
    (results / f"{version}.json").write_text(json.dumps(rows))
    wrong = {
        name: answer
        for name, answer in rows.items()
        if answer not in ("works", "absent") and (name, version) not in EXCEPTIONS
    }
    assert not wrong, f"{json.dumps(wrong, indent=1)}\n{done.stderr[-3000:]}"
