"""Every public method, by every SDK and by the thin client, against the real service.

`make test-sdks` runs it, and makes the table of what it found when all of it passed. What an old version
cannot do here stands in EXCEPTIONS with its reason, and anything else that does not work is a failure.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.contract.conftest import BASE_MODEL, Service
from tests.contract.conftest import service as service
from tests.sdks.environments import COLUMNS, THIN, python_of
from tests.sdks.table import EXCEPTIONS, RESULTS

REPOSITORY = Path(__file__).parents[2]
_LIMIT_SECONDS = 1200


@pytest.mark.parametrize("version", COLUMNS)
def test_every_method_works_or_says_why_not(version: str, service: Service, tmp_path: Path) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "TINKER_BASE_URL": service.url,
        "TINKER_API_KEY": service.new_key(f"sdk-{version}"),
        "TINKER_TELEMETRY": "0",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'client'}",
        "SDK_MODULE": "tinsmith" if version == THIN else "tinker",
    }
    model = tmp_path / BASE_MODEL  # where its tokenizer is looked for
    model.parent.mkdir()
    model.symlink_to(service.data_dir / "tiny")
    done = subprocess.run(
        [python_of(version), "-m", "tests.sdks.exercise"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout)
    rows = answer["rows"]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{version}.json").write_text(json.dumps(rows))
    wrong = {
        name: answer
        for name, answer in rows.items()
        if answer not in ("works", "absent") and (name, version) not in EXCEPTIONS
    }
    assert not wrong, f"{json.dumps(wrong, indent=1)}\n{done.stderr[-3000:]}"
    assert answer["untried"] == []
