"""docs/http.md does what it says: its blocks run as they stand there."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.contract.conftest import BASE_MODEL, Service

DOCUMENT = Path(__file__).parents[2] / "docs" / "http.md"
PROGRAMS = {
    "bash": (["bash", "script"], "curl"),
    "javascript": (["node", "script.mjs"], "node"),
}


@pytest.mark.parametrize("language", list(PROGRAMS))
def test_a_training_step_runs_as_written(service: Service, tmp_path: Path, language: str) -> None:
    command, needed = PROGRAMS[language]
    if shutil.which(needed) is None:
        pytest.skip(f"{needed} is not installed")
    [script] = re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (tmp_path / command[1]).write_text(script)
    environment = service.environment | {
        "TINKER_BASE_URL": service.url,
        "TINKER_API_KEY": service.api_key,
        "BASE_MODEL": BASE_MODEL,
    }
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    *losses, sampled = done.stdout.splitlines()
    values = [float(line.removeprefix("loss ")) for line in losses]
    assert len(values) == 3
    assert values[2] < values[1] < values[0]
    [sequence] = json.loads(sampled)["sequences"]
    assert len(sequence["tokens"]) == 4
