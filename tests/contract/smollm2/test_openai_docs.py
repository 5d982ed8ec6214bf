"""The commands of docs/openai.md, as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.smollm2.conftest import Tuned
from tests.contract.smollm2.test_lm_eval import write_tasks

PAGE = (Path(__file__).parents[3] / "docs" / "openai.md").read_text()
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", PAGE, re.DOTALL)
EXPORTS = BLOCKS[0][1]
CLIENTS = [block for block in BLOCKS[1:] if "lm_eval" not in block[1]]
HARNESS = [block for block in BLOCKS[1:] if "lm_eval" in block[1]]


def run(tuned: Tuned, folder: Path, language: str, block: str) -> str:
    environment = os.environ | {
        "TINKER_BASE_URL": tuned.service.url,
        "TINKER_API_KEY": tuned.service.api_key,
        "TOKENIZER": str(tuned.base),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
    }
    script = block if language == "bash" else f"{sys.executable} - <<'END'\n{block}END\n"
    done = subprocess.run(
        ["bash", "-euc", EXPORTS + script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_page_has_commands_of_each_kind() -> None:
    text = "".join(block for _, block in CLIENTS)
    assert all(word in text for word in ("curl", "OpenAI()", "litellm"))
    assert len(HARNESS) == 3


@pytest.mark.parametrize("block", CLIENTS, ids=["curl", "openai", "litellm"])
def test_a_client_of_the_page_is_answered(
    tuned: Tuned, tmp_path: Path, block: tuple[str, str]
) -> None:
    said = run(tuned, tmp_path, *block)
    assert said.strip()
    assert '"error"' not in said


@pytest.mark.slow
@pytest.mark.parametrize("block", HARNESS, ids=["completions", "chat", "remote tokenizer"])
def test_the_harness_scores_as_the_page_says(
    tuned: Tuned, tmp_path: Path, block: tuple[str, str]
) -> None:
    (tmp_path / "tasks").mkdir()
    write_tasks(tmp_path / "tasks")
    said = run(tuned, tmp_path, *block)
    assert "|" in said
    assert "Traceback" not in said
