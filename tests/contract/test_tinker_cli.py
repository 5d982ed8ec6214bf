"""Every command of the `tinker` command line, against the real service (wire: section 10)."""

import datetime
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tinker
from click.testing import CliRunner
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as perfetto
from tinker.cli.__main__ import main_cli

from tests.contract.conftest import BASE_MODEL, Service

Tinker = Callable[..., str]


@pytest.fixture(scope="module")
def key(service: Service) -> str:
    """One for all: the SDK keeps its REST connections, with their key, as long as the process lives."""
    return service.new_key("command-line")


@pytest.fixture
def home(tmp_path: Path, service: Service, key: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in {
        "HOME": str(tmp_path),
        "TINKER_BASE_URL": service.url,
        "TINKER_API_KEY": key,
        "TINKER_TELEMETRY": "0",
    }.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.fixture
def cli(home: Path) -> Tinker:
    def run(*words: str, answers: str | None = None, fails: bool = False) -> str:
        done = CliRunner().invoke(main_cli, words, input=answers)
        assert (done.exit_code != 0) is fails, done.output + repr(done.exception)
        return done.output

    return run


@pytest.fixture
def run(home: Path) -> Iterator[tinker.TrainingClient]:
    with tinker.ServiceClient() as client:
        run = client.create_lora_training_client(BASE_MODEL, rank=2).result(60)
        run.save_state("one").result(60)
        run.save_weights_for_sampler("two").result(60)
        yield run


def as_json(text: str) -> Any:
    return json.loads(text[min(i for i in (text.find("{"), text.find("[")) if i >= 0) :])


def test_version_status_and_whoami(cli: Tinker, home: Path, service: Service) -> None:
    assert tinker.__version__ in cli("version")
    cli("auth", "status")
    assert "tml:api_key:" in cli("auth", "whoami")


def test_login_keeps_a_key_and_logout_forgets_it(
    cli: Tinker, home: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TINKER_API_KEY")
    key = service.new_key("pasted")
    cli("auth", "login", answers=f"{key}\n")
    kept = json.loads((home / ".tinker" / "credentials.json").read_text())
    [record] = kept["keys"].values()
    assert record["key"] == key
    assert record["details"]["org_details"]["name"] == "pasted"
    cli("auth", "status")
    cli("auth", "logout")
    with service.http(key) as http:
        assert http.get("/training_runs").is_success  # a pasted key lives on


def test_models_are_listed(cli: Tinker) -> None:
    assert BASE_MODEL in cli("model", "list")
    assert BASE_MODEL in cli("model", "list", "llama")


def test_runs_are_listed_and_shown(cli: Tinker, run: tinker.TrainingClient) -> None:
    assert run.model_id in json.dumps(as_json(cli("-f", "json", "run", "list", "--limit", "0")))
    assert BASE_MODEL in cli("run", "info", run.model_id)


def test_checkpoints_are_listed_shown_published_and_deleted(
    cli: Tinker, run: tinker.TrainingClient
) -> None:
    path = f"tinker://{run.model_id}/weights/one"
    for listing in (("--run-id", run.model_id), ("--limit", "5")):
        listed = json.dumps(as_json(cli("-f", "json", "checkpoint", "list", *listing)))
        assert path in listed
        assert "sampler_weights/two" in listed
    assert "one" in cli("checkpoint", "info", path)
    cli("checkpoint", "publish", path)
    assert as_json(cli("-f", "json", "checkpoint", "info", path))["public"] is True
    cli("checkpoint", "unpublish", path)
    cli("checkpoint", "set-ttl", path, "--ttl", "7200")
    assert as_json(cli("-f", "json", "checkpoint", "info", path))["expires_at"]
    cli("checkpoint", "set-ttl", path, "--remove")
    cli("checkpoint", "delete", path, "-y")
    left = cli("-f", "json", "checkpoint", "list", "--run-id", run.model_id)
    assert path not in left
    cli("checkpoint", "delete", "--run-id", run.model_id, "--type", "sampler_weights", "-y")
    left = cli("-f", "json", "checkpoint", "list", "--run-id", run.model_id)
    assert "two" not in left


def test_usage_and_storage(cli: Tinker, run: tinker.TrainingClient) -> None:
    now = datetime.datetime.now(datetime.UTC).replace(minute=0, second=0, microsecond=0)
    hour = datetime.timedelta(hours=1)
    begin, end = ((now + shift).isoformat() for shift in (-hour, hour))
    rows = as_json(cli("-f", "json", "billing", "usage", begin, end))
    types = {row["event_info"]["type"] for row in rows["data"]}
    assert types == {"checkpoint", "storage"}
    assert "hourly usage row(s)" in cli("billing", "usage", begin, end)
    assert "2" in cli("billing", "checkpoint-storage")


def test_a_trace_is_exported(cli: Tinker, run: tinker.TrainingClient, home: Path) -> None:
    file = home / "session.pftrace"
    cli("session", "export-trace", run.model_id.split(":")[0], "-o", str(file))
    names = {p.track_event.name for p in perfetto.Trace.FromString(file.read_bytes()).packet}
    assert {"create_model", "save_weights"} <= names
