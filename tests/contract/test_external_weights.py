"""Weights that leave the service: exported, encrypted, fetched over links, archived, copied."""

import io
import json
import os
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyrage
import pytest
import tinker
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load
from tinsmith_server.downloads.signing import Signer
from transformers import AutoModelForCausalLM

from tests.contract.conftest import BASE_MODEL, Service
from tests.contract.recording_proxy import recording_proxy
from tests.contract.test_clients import TOKENS, train


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[tinker.ServiceClient]:
    with tinker.ServiceClient(base_url=service.url, api_key=service.api_key) as client:
        yield client


@pytest.fixture(scope="module")
def rest(service: Service) -> tinker.RestClient:
    return tinker.RestClient(base_url=service.url, api_key=service.api_key)


@pytest.fixture(scope="module")
def run(client: tinker.ServiceClient) -> tinker.TrainingClient:
    run = client.create_lora_training_client(BASE_MODEL, rank=4, seed=1).result(60)
    train(tinker, run, 3)
    return run


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:  # as the SDK does: no header of ours
        data: bytes = answer.read()
        assert len(data) == int(answer.headers["content-length"])
    return data


def files(rest: tinker.RestClient, path: str) -> dict[str, bytes]:
    answer = rest.get_external_weights_urls(path).result(30)
    left = answer.expires - datetime.now(UTC)
    assert timedelta(minutes=55) < left <= timedelta(hours=1)
    return {name: fetch(url) for name, url in answer.urls.items()}


def refused(url: str, method: str = "GET") -> int:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=30)
    return caught.value.code


def test_an_exported_adapter_gives_the_samplers_logprobs_in_plain_peft(
    run: tinker.TrainingClient, rest: tinker.RestClient, service: Service
) -> None:
    saved = run.save_weights_external("plain").result(60)
    assert saved.path == f"tinker://{run.model_id}/external_weights/plain"
    found = files(rest, saved.path)
    assert set(found) == {"adapter_config.json", "adapter_model.safetensors"}
    [listed] = rest.list_checkpoints(run.model_id).result(30).checkpoints
    assert (listed.checkpoint_type, listed.tinker_path) == ("external", saved.path)
    assert listed.size_bytes == sum(map(len, found.values()))
    tensors = load(found["adapter_model.safetensors"])
    head = "base_model.model.model.unembed_tokens.lora_A.weight"
    assert tensors[head].shape[0] == 4
    config = json.loads(found["adapter_config.json"])
    # What the tools for Tinker's adapters do: its name of the unembedding becomes the model's.
    named = {
        name.replace("model.model.unembed_tokens", "model.lm_head"): tensor
        for name, tensor in tensors.items()
    }
    targets = [name.replace("unembed_tokens", "lm_head") for name in config["target_modules"]]
    model = AutoModelForCausalLM.from_pretrained(service.data_dir / "tiny")
    lora = LoraConfig(r=config["r"], lora_alpha=config["lora_alpha"], target_modules=targets)
    peft = get_peft_model(model, lora).eval()
    loaded = set_peft_model_state_dict(peft, named)
    assert loaded.unexpected_keys == []
    with torch.no_grad():
        logits = peft(torch.tensor([TOKENS])).logits[0, :-1].log_softmax(-1)
    expected = logits[range(len(TOKENS) - 1), TOKENS[1:]]
    sampler = run.save_weights_and_get_sampling_client().result(60)
    scores = sampler.compute_logprobs(tinker.ModelInput.from_ints(TOKENS)).result(60)
    torch.testing.assert_close(torch.tensor(scores[1:]), expected, atol=1e-4, rtol=0)


def test_every_recipient_can_read_it_alone_and_nobody_else(
    run: tinker.TrainingClient, rest: tinker.RestClient, tmp_path: Path
) -> None:
    key_file = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key_file)], check=True)
    alice = pyrage.x25519.Identity.generate()
    carol = pyrage.ssh.Identity.from_buffer(key_file.read_bytes())
    recipients = [str(alice.to_public()), key_file.with_suffix(".pub").read_text().strip()]
    path = run.save_weights_external("secret", age_encryption_recipients=recipients).result(60).path
    found = files(rest, path)
    assert set(found) == {"adapter_config.json.age", "adapter_model.safetensors.age"}
    for data in found.values():
        opened = [pyrage.decrypt(data, [identity]) for identity in (alice, carol)]
        assert opened[0] == opened[1]
        with pytest.raises(pyrage.DecryptError):
            pyrage.decrypt(data, [pyrage.x25519.Identity.generate()])
    assert json.loads(pyrage.decrypt(found["adapter_config.json.age"], [alice]))["r"] == 4


@pytest.mark.parametrize(
    ("recipients", "message"),
    [
        (["age1nonsense"], r"age_encryption_recipients\[0\]"),
        (["ssh-rsa nonsense"], "neither an age public key"),
        ([], "from 1 to 10"),
        (["age1"] * 11, "from 1 to 10"),
    ],
)
def test_bad_recipients_save_nothing(
    run: tinker.TrainingClient, rest: tinker.RestClient, recipients: list[str], message: str
) -> None:
    with pytest.raises(tinker.RequestFailedError, match=message):
        run.save_weights_external("never", age_encryption_recipients=recipients).result(60)
    listed = rest.list_checkpoints(run.model_id).result(30).checkpoints
    assert "external_weights/never" not in {one.checkpoint_id for one in listed}


def test_a_link_is_for_one_thing_one_method_and_one_hour(
    run: tinker.TrainingClient, rest: tinker.RestClient, service: Service
) -> None:
    paths = [run.save_weights_external(name).result(60).path for name in ("one", "two")]
    urls, others = (rest.get_external_weights_urls(path).result(30).urls for path in paths)
    url, other = urls["adapter_config.json"], others["adapter_config.json"]
    assert fetch(url)
    query = url.partition("?")[2]
    for altered in (
        url[:-1] + ("0" if url[-1] != "0" else "1"),
        f"{other.partition('?')[0]}?{query}",
        f"{url.partition('?')[0].replace('adapter_config.json', 'manifest.json')}?{query}",
        url.replace("expires=", "expires=9"),
    ):
        assert refused(altered) == 401
    for method in ("DELETE", "PUT", "POST", "HEAD"):
        assert refused(url, method) == 404
    signer = Signer((service.data_dir / "key_pepper").read_bytes())
    path = url.partition("?")[0].partition("/api/v1")[2]
    expired = signer._signature(path, 1)
    assert refused(f"{url.partition('?')[0]}?expires=1&signature={expired}") == 401
    training = run.save_state("t").result(60).path.removeprefix(f"tinker://{run.model_id}/")
    with service.http() as http:
        asked = f"/training_runs/{run.model_id}/checkpoints/{training}/external_weights_urls"
        assert http.get(asked).status_code == 400
    stranger = tinker.RestClient(base_url=service.url, api_key=service.other_key)
    with pytest.raises(tinker.NotFoundError):
        stranger.get_external_weights_urls(paths[0]).result(30)
    rest.delete_checkpoint_from_tinker_path(paths[0]).result(30)
    assert refused(url) == 404


def test_external_weights_cannot_be_sampled_from(
    client: tinker.ServiceClient, run: tinker.TrainingClient
) -> None:
    path = run.save_weights_external("outside").result(60).path
    with pytest.raises(tinker.BadRequestError, match="external weights"):
        client.create_sampling_client(model_path=path).result(60)


def test_old_sdks_get_a_tar_that_says_it_is_complete(
    run: tinker.TrainingClient, service: Service
) -> None:
    path = run.save_weights_for_sampler("archived").result(60).path
    with service.http() as http:
        answer = http.get(
            f"/training_runs/{run.model_id}/checkpoints/sampler_weights/archived/archive"
        )
        assert answer.status_code == 302
        assert datetime.strptime(answer.headers["expires"], "%a, %d %b %Y %H:%M:%S GMT")
        other = http.get("/training_runs/s:train:0/checkpoints/weights/x/archive")
        assert other.status_code == 404
    data = fetch(answer.headers["location"])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        names = tar.getnames()
        config = tar.extractfile("adapter_config.json")
        weights = tar.extractfile("adapter_model.safetensors")
        assert config is not None
        assert weights is not None
        assert json.loads(config.read())["r"] == 4
        assert load(weights.read())
    assert names == ["checkpoint_complete", "adapter_config.json", "adapter_model.safetensors"]
    assert path.endswith("archived")


def test_a_copy_stands_alone_in_its_project(
    client: tinker.ServiceClient,
    run: tinker.TrainingClient,
    rest: tinker.RestClient,
    service: Service,
) -> None:
    source = run.save_state("original", ttl_seconds=7200, user_metadata={"a": "b"}).result(60).path
    their_key = service.new_key("copiers")
    stranger = tinker.RestClient(base_url=service.url, api_key=their_key)
    with pytest.raises(tinker.NotFoundError):
        stranger.copy_weights(source, destination_project_id="theirs").result(30)
    rest.publish_checkpoint_from_tinker_path(source).result(30)
    theirs = stranger.copy_weights(source, destination_project_id="theirs").result(30)
    mine = rest.copy_weights(source, destination_project_id="copies").result(30)
    paths = {
        name: getattr(copied, "tinker_path", copied)
        for name, copied in (("theirs", theirs), ("mine", mine))
    }
    expected = run.forward([_datum()], "cross_entropy").result(60).metrics["loss:sum"]
    rest.delete_checkpoint_from_tinker_path(source).result(30)
    for path, api_key in ((paths["mine"], service.api_key), (paths["theirs"], their_key)):
        with tinker.ServiceClient(base_url=service.url, api_key=api_key) as fresh:
            resumed = fresh.create_training_client_from_state_with_optimizer(path).result(60)
            loss = resumed.forward([_datum()], "cross_entropy").result(60).metrics["loss:sum"]
        assert loss == expected
    [listed] = rest.list_checkpoints(paths["mine"].split("/")[2]).result(30).checkpoints
    assert (listed.expires_at, listed.user_metadata) == (None, {"a": "b"})
    [made] = rest.list_training_runs(project_id="copies").result(30).training_runs
    assert made.training_run_id == paths["mine"].split("/")[2]
    with pytest.raises(tinker.BadRequestError, match="access_token"):
        rest.copy_weights(
            paths["mine"], destination_project_id="copies", weights_access_token="x"
        ).result(30)


def _datum() -> tinker.Datum:
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(TOKENS[:-1]),
        loss_fn_inputs={"target_tokens": TOKENS[1:], "weights": [1.0] * (len(TOKENS) - 1)},
    )


def test_a_copy_that_is_sent_again_is_the_same_copy(
    run: tinker.TrainingClient, service: Service
) -> None:
    source = run.save_weights_for_sampler("again").result(60).path
    body = {"source_path": source, "destination_project_id": "again"}
    with service.http() as http:
        twice = [
            http.post("/copy_weights", json=body, headers={"X-Idempotency-Key": "k"}).json()
            for _ in range(2)
        ]
        other = http.post("/copy_weights", json=body, headers={"X-Idempotency-Key": "l"}).json()
        assert http.post("/copy_weights", json=body | {"ttl_seconds": 1}).status_code == 400
    assert twice[0] == twice[1] != other
    assert twice[0]["tinker_path"].endswith("/sampler_weights/again")


def test_older_sdks_copy_into_the_project_of_a_session(
    run: tinker.TrainingClient, rest: tinker.RestClient, service: Service
) -> None:
    source = run.save_weights_for_sampler("older").result(60).path
    body = {"source_path": source, "model_seq_id": 3}
    with service.http() as http, service.http(service.other_key) as stranger:
        made = http.post("/create_session", json={"project_id": "older", "sdk_version": "0.33.1"})
        body["session_id"] = made.json()["session_id"]
        # These send another X-Idempotency-Key each time: session and number are the key.
        twice = [
            http.post("/copy_weights", json=body, headers={"X-Idempotency-Key": key}).json()
            for key in "kl"
        ]
        next_one = http.post("/copy_weights", json=body | {"model_seq_id": 4}).json()
        assert stranger.post("/copy_weights", json=body).status_code == 404
        nowhere = http.post("/copy_weights", json={"source_path": source})
        assert (nowhere.status_code, "destination_project_id" in nowhere.text) == (400, True)
    assert twice[0] == twice[1] != next_one
    found = rest.list_training_runs(project_id="older").result(30).training_runs
    paths = {twice[0]["tinker_path"], next_one["tinker_path"]}
    assert {one.training_run_id for one in found} == {path.split("/")[2] for path in paths}


@pytest.mark.parametrize("kind", ["training", "external"])
def test_the_command_line_downloads(
    run: tinker.TrainingClient, service: Service, tmp_path: Path, kind: str
) -> None:
    if kind == "training":
        path = run.save_state("cli").result(60).path
    else:
        path = run.save_weights_external("cli").result(60).path
    with recording_proxy(service.url) as (url, arrived):
        subprocess.run(
            [sys.executable, "-m", "tinker.cli", "checkpoint", "download", path, "-o", tmp_path],
            env=os.environ
            | {
                "TINKER_BASE_URL": url,
                "TINKER_API_KEY": service.api_key,
                "HOME": str(tmp_path),
                "TINKER_TELEMETRY": "0",
            },
            check=True,
            capture_output=True,
        )
    found = {file.name for file in tmp_path.rglob("adapter*")}
    assert found == {"adapter_config.json", "adapter_model.safetensors"}
    deleted = [path for path, request in arrived if request.method == "DELETE"]
    assert len(deleted) == (kind == "training")
