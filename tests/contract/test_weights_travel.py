"""Weights out and in by `tinsmith checkpoints`: downloaded, merged, published, imported, trained on."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
import tinker
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tinsmith_server.cli.main import app
from tinsmith_server.problems import Problem
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from tests.contract.conftest import BASE_MODEL, Service
from tests.contract.test_clients import TOKENS, train


@pytest.fixture(scope="module", autouse=True)
def background(service: Service) -> Iterator[None]:
    service.start("background")
    yield
    process = service.processes.pop("background")
    process.terminate()
    process.wait(20)


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[tinker.ServiceClient]:
    with tinker.ServiceClient(base_url=service.url, api_key=service.api_key) as client:
        yield client


@pytest.fixture(scope="module")
def run(client: tinker.ServiceClient) -> tinker.TrainingClient:
    run = client.create_lora_training_client(BASE_MODEL, rank=4, seed=1).result(60)
    train(tinker, run, 3)
    return run


@pytest.fixture(scope="module")
def path(run: tinker.TrainingClient) -> str:
    return run.save_state("travels").result(60).path


def said(service: Service, *arguments: str, key: str | None = None) -> str:
    """What `tinsmith checkpoints` prints; raises the Problem that it stops with."""
    environment = {"TINKER_BASE_URL": service.url, "TINKER_API_KEY": key or service.api_key}
    result = CliRunner().invoke(app, ["checkpoints", *arguments], env=environment)
    if result.exception is not None:
        raise result.exception
    return result.stdout.strip()


def scores(model: Any) -> torch.Tensor:
    """Log-probability of each token but the first."""
    with torch.no_grad():
        logits = model.eval()(torch.tensor([TOKENS])).logits[0, :-1].log_softmax(-1)
    picked: torch.Tensor = logits[range(len(TOKENS) - 1), TOKENS[1:]]
    return picked


def sampled_scores(client: tinker.ServiceClient, path: str) -> torch.Tensor:
    sampler = client.create_sampling_client(model_path=path)
    found = sampler.compute_logprobs(tinker.ModelInput.from_ints(TOKENS)).result(60)
    return torch.tensor(found[1:])


def base(service: Service) -> Any:
    return AutoModelForCausalLM.from_pretrained(service.data_dir / "tiny")


def test_a_downloaded_adapter_opens_in_peft_with_the_samplers_logprobs(
    service: Service, client: tinker.ServiceClient, path: str, tmp_path: Path
) -> None:
    folder = said(service, "download", path, "--out", str(tmp_path / "adapter"), "--adapter-only")
    assert {file.name for file in Path(folder).iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    found = scores(PeftModel.from_pretrained(base(service), folder))
    expected = sampled_scores(client, path)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (found - scores(base(service))).abs().max() > 0.01
    with pytest.raises(Problem, match="is there already"):
        said(service, "download", path, "--out", folder)


def test_an_imported_checkpoint_goes_on_with_the_same_losses(
    service: Service,
    client: tinker.ServiceClient,
    run: tinker.TrainingClient,
    path: str,
    tmp_path: Path,
) -> None:
    folder = said(service, "download", path, "--out", str(tmp_path / "whole"))
    imported = said(service, "import", folder, "--name", "back").splitlines()[-1]
    assert imported.startswith("tinker://sess-")
    assert imported.endswith("/weights/back")
    info = json.loads(said(service, "show", imported))
    assert (info["base_model"], info["lora_rank"]) == (BASE_MODEL, 4)
    here = client.create_training_client_from_state_with_optimizer(path).result(60)
    there = client.create_training_client_from_state_with_optimizer(imported).result(60)
    expected = train(tinker, here, 3)
    assert train(tinker, there, 3) == expected
    fresh = client.create_training_client_from_state(imported).result(60)
    assert train(tinker, fresh, 3)[2] != expected[2]


def test_an_adapter_that_peft_made_becomes_a_run_that_trains(
    service: Service, client: tinker.ServiceClient, tmp_path: Path
) -> None:
    torch.manual_seed(4)
    lora = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "up_proj"], use_rslora=True)
    peft = get_peft_model(base(service), lora)
    for name, weight in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    peft.save_pretrained(tmp_path / "outside")
    imported = said(service, "import", str(tmp_path / "outside"), "--base-model", BASE_MODEL)
    found = sampled_scores(client, imported.splitlines()[-1])
    torch.testing.assert_close(found, scores(peft), atol=1e-4, rtol=0)
    run = client.create_training_client_from_state(imported.splitlines()[-1]).result(60)
    losses = train(tinker, run, 4)
    assert losses[3] < losses[0]


def test_a_merged_model_gives_the_samplers_logprobs(
    service: Service, client: tinker.ServiceClient, path: str, tmp_path: Path
) -> None:
    folder = said(service, "merge", path, "--out", str(tmp_path / "merged"))
    found = scores(AutoModelForCausalLM.from_pretrained(folder))
    torch.testing.assert_close(found, sampled_scores(client, path), atol=1e-4, rtol=0)
    assert (Path(folder) / "tokenizer.json").is_file()
    with pytest.raises(Problem, match=r"convert_hf_to_gguf\.py"):
        said(service, "merge", path, "--out", str(tmp_path / "other"), "--format", "gguf")


def test_a_folder_is_published_with_a_card_that_says_how_to_open_it(
    service: Service, path: str, tmp_path: Path
) -> None:
    folder = Path(said(service, "push", path, str(tmp_path / "repository")))
    card = (folder / "README.md").read_text()
    assert f"base_model: {BASE_MODEL}" in card
    assert "PeftModel.from_pretrained" in card
    assert path in card
    assert "*.safetensors" in (folder / ".gitattributes").read_text()
    assert scores(PeftModel.from_pretrained(base(service), folder)).isfinite().all()


class _Hub(BaseHTTPRequestHandler):
    """As much of a hub as a commit of small files takes (huggingface_hub: `HfApi.create_commit`)."""

    files: ClassVar[dict[str, bytes]] = {}
    keys: ClassVar[set[str | None]] = set()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.keys.add(self.headers["authorization"])
        repository = f"http://{self.headers['host']}/a/b"
        if self.path == "/api/repos/create":
            self._answer({"url": repository})
        elif self.path == "/api/validate-yaml":
            self._answer({"warnings": [], "errors": []})
        elif self.path.endswith("/preupload/main"):
            asked = json.loads(body)["files"]
            modes = [{"path": one["path"], "uploadMode": "regular"} for one in asked]
            self._answer({"files": [one | {"shouldIgnore": False} for one in modes]})
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer({"commitUrl": f"{repository}/commit/1", "commitOid": "1"})
        else:
            self.send_error(404)

    def do_GET(self) -> None:
        self._answer({"sha": "1", "id": "a/b", "siblings": []})

    def _answer(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_hub_gets_the_adapter_and_the_card(service: Service, path: str, hub: str) -> None:
    printed = said(service, "push", path, "a/b", "--endpoint", hub, "--token", "hf_secret")
    assert printed == f"{hub}/a/b/commit/1"
    assert set(_Hub.files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert _Hub.keys == {"Bearer hf_secret"}
    with pytest.raises(Problem, match="repo: "):
        said(service, "push", path, "a/b/c", "--endpoint", hub)


def test_checkpoints_are_listed_and_deleted(
    service: Service, run: tinker.TrainingClient, path: str
) -> None:
    other = run.save_state("short-lived").result(60).path
    rows = json.loads(said(service, "list", "--run", run.model_id, "--json"))
    assert [row["tinker_path"] for row in rows] == [other, path]
    assert other in {row["tinker_path"] for row in json.loads(said(service, "list", "--json"))}
    said(service, "delete", other, "--yes")
    with pytest.raises(Problem, match="there is no checkpoint"):
        said(service, "show", other)
    assert said(service, "list")


def test_another_organization_finds_none_of_it(service: Service, path: str, tmp_path: Path) -> None:
    job = {"tinker_path": path}
    with service.http() as http, service.http(service.other_key) as stranger:
        mine = http.post("/exports", json=job).json()["job_id"]
        for method, url in (
            ("POST", "/exports"),
            ("GET", f"/jobs/{mine}"),
            ("GET", f"/jobs/{mine}/files"),
            ("GET", f"/training_runs/{path[9:].split('/')[0]}/checkpoints/weights/travels/files"),
        ):
            answer = stranger.request(method, url, json=job if method == "POST" else None)
            assert answer.status_code == 404, url
        waited = http.get(f"/jobs/{mine}").json()
        while waited["state"] in ("queued", "running"):
            waited = http.get(f"/jobs/{mine}").json()
        urls = http.get(f"/jobs/{mine}/files").json()["urls"]
        assert httpx.get(urls["config.json"]).status_code == 200
        assert httpx.get(urls["config.json"].replace("config", "secret")).status_code == 401
        assert httpx.get(urls["config.json"].replace(mine, "0" * 32)).status_code == 401


ADAPTER = {"peft_type": "LORA", "r": 4, "lora_alpha": 32}


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"adapter_config": None}, 400, "adapter_config: give"),
        ({"adapter_model": None}, 400, "adapter_model: give"),
        ({"base_model": None}, 400, "base_model: give"),
        ({"base_model": "no/such"}, 400, "base_model: 'no/such' is not served"),
        ({"name": "../../etc"}, 400, "name: '../../etc' is not a checkpoint name"),
        ({"project_id": "a b"}, 400, "project_id"),
        ({"adapter_config": json.dumps(ADAPTER | {"use_dora": True})}, 400, "use_dora"),
        ({"adapter_config": json.dumps(ADAPTER | {"r": 4096})}, 400, "adapter_config.r: 4096"),
        ({"adapter_config": "x" * (2 << 20)}, 400, "adapter_config: give"),
    ],
)
def test_an_upload_that_can_never_work_is_refused_at_once(
    service: Service, change: dict[str, str | None], status: int, message: str
) -> None:
    files = {
        "adapter_config": ("../../a.json", json.dumps(ADAPTER)),
        "adapter_model": ("/etc/passwd", b"12345678"),
    }
    fields = {"base_model": BASE_MODEL}
    for name, value in change.items():
        files.pop(name, None)
        fields.pop(name, None)
        if value is not None and name.startswith("adapter"):
            files[name] = ("c.json", value)
        elif value is not None:
            fields[name] = value
    with service.http() as http:
        answer = http.post("/imports", data=fields, files=files or {"none": b""})
    assert answer.status_code == status
    assert message in answer.json()["detail"]


def test_an_upload_that_is_no_form_or_too_long_is_refused(service: Service) -> None:
    with service.http() as http:
        for kind, body, message in (
            ("application/json", b"{}", "body: "),
            ("multipart/form-data", b"nothing", "body: "),
            ("multipart/form-data; boundary=x", b"--y\r\nnonsense", "body: "),
            ("multipart/form-data; boundary=x", b"--x\r\nnonsense", "adapter_config: give"),
        ):
            answer = http.post("/imports", content=body, headers={"content-type": kind})
            assert answer.status_code == 400
            assert message in answer.json()["detail"]
        many = [("adapter_model", (f"{index}", b"x")) for index in range(9)]
        assert http.post("/imports", files=many).status_code == 400
        headers = {"content-type": "multipart/form-data; boundary=x"}
        pieces = http.post("/imports", content=iter([b"--x"]), headers=headers)
        assert "Content-Length" in pieces.json()["detail"]


def test_an_adapter_that_does_not_fit_fails_its_job_by_name(
    service: Service, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(ADAPTER))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"PK\x03\x04 a pickle, perhaps")
    with pytest.raises(Problem, match="not a whole safetensors file"):
        said(service, "import", str(tmp_path), "--base-model", BASE_MODEL)
    assert not list((service.data_dir / "store" / "uploads").glob("*/*"))
