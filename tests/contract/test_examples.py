"""The files of examples/ as a reader runs them, on tiny models."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from tests.contract.conftest import BASE_MODEL, SECOND_MODEL, Service

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def desk(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [{"prompt": f"w{index}", "completion": f"w{index + 1} w3"} for index in range(4, 8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINKER_BASE_URL", service.url)
    monkeypatch.setenv("TINKER_API_KEY", service.api_key)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    models = ["--student", BASE_MODEL, "--teacher", SECOND_MODEL]
    monkeypatch.setattr(sys, "argv", [name, *models, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.mark.parametrize("name", ["gkd.py", "gold.py", "minillm.py"])
def test_trls_trainers(
    name: str, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--data", "rows.jsonl", "--steps", "1", "--max-new-tokens", "4", "--out", "out"]
    run(name, monkeypatch, *asked)
    assert "step 1" in capsys.readouterr().out
    assert (desk / "out/adapter_model.safetensors").exists()


def test_a_loop_of_ones_own_goes_on_and_is_drawn(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for steps in ("1", "2"):
        asked = ["--steps", steps, "--max-tokens", "4", "--plot", "curves.png"]
        run("on_policy.py", monkeypatch, *asked)
    rows = [json.loads(line) for line in (desk / "on_policy.jsonl").open()]
    assert [row["step"] for row in rows] == [0, 1]
    assert (desk / "curves.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "over the whole vocabulary" in shown
    assert "divergence" in shown


def test_between_tokenizers(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("cross_tokenizer.py", monkeypatch, "--steps", "2")
    assert "step 1" in capsys.readouterr().out
