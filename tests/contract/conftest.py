"""A whole service for the contract tests: real Valkey, real API process, real worker, tiny model."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import httpx
import pytest
import tinker as official_sdk
import tinsmith
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, TokenizersBackend

BASE_MODEL = "tiny/llama"
SECOND_MODEL = "tiny/llama-two"
VOCAB = 96
CONTEXT = 128


@dataclass(frozen=True)
class Service:
    url: str
    api_key: str
    other_key: str
    data_dir: Path
    environment: dict[str, str]
    processes: dict[str, "subprocess.Popen[bytes]"]

    def start(self, command: str) -> None:
        with (self.data_dir / "service.log").open("ab") as log:
            self.processes[command] = subprocess.Popen(
                [sys.executable, "-m", "tinsmith_worker"]
                if command == "work"
                else [sys.executable, "-m", "tinsmith_server.cli", command],
                env=self.environment,
                stdout=log,
                stderr=log,
            )

    def new_key(self, organization: str) -> str:
        """Of an organization that has done nothing yet, when its name is new."""
        command = [sys.executable, "-m", "tinsmith_server.cli", "keys", "create", "test", "--quiet"]
        made = subprocess.run(
            [*command, "--organization", organization],
            env=self.environment,
            check=True,
            capture_output=True,
            text=True,
        )
        return made.stdout.strip()

    def http(self, api_key: str | None = None) -> httpx.Client:
        headers = {"X-API-Key": api_key or self.api_key}
        return httpx.Client(base_url=f"{self.url}/api/v1", headers=headers, timeout=60)


def save_tiny(folder: Path, seed: int, tied: bool = False) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        eos_token_id=1,
        bos_token_id=0,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = {f"w{index}": index for index in range(VOCAB)}
    backend = Tokenizer(WordLevel(words, unk_token="w2"))
    backend.pre_tokenizer = Whitespace()
    TokenizersBackend(tokenizer_object=backend, unk_token="w2").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[official_sdk, tinsmith], ids=["sdk", "tinsmith"])
def tinker(request: pytest.FixtureRequest) -> ModuleType:
    """What a test that asks for it runs with: the official SDK, then our own client."""
    module: ModuleType = request.param
    return module


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, valkey_url: str) -> Iterator[Service]:
    data_dir = tmp_path_factory.mktemp("service")
    models = {
        BASE_MODEL: save_tiny(data_dir / "tiny", 0),
        SECOND_MODEL: save_tiny(data_dir / "tiny-two", 1),
    }
    with running_service(data_dir, valkey_url, models) as made:
        yield made


@contextmanager
def running_service(
    data_dir: Path, valkey_url: str, models: dict[str, Path], **settings: str
) -> Iterator[Service]:
    """One at a time on a Valkey: what serves which models is known there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "TINSMITH_DATA_DIR": str(data_dir),
        "TINSMITH_REDIS_URL": valkey_url,
        "TINSMITH_MODELS": ",".join(f"{name}={folder}" for name, folder in models.items()),
        "TINSMITH_HOST": "127.0.0.1",
        "TINSMITH_PORT": str(port),
        "TINSMITH_TORCH_THREADS": "1",
        "TINSMITH_GAP_SECONDS": "1",
        "TINSMITH_FWDBWD_MAX_CHUNK_LEN": "2",
        "TINSMITH_PRICES": "training=2, storage=0.5",
        "TINSMITH_MODEL_ALIASES": f"mine={SECOND_MODEL}",
        "OMP_NUM_THREADS": "1",
    }
    environment |= settings
    tinsmith = [sys.executable, "-m", "tinsmith_server.cli"]
    created = [
        subprocess.run(
            [*tinsmith, "keys", "create", name, "--organization", name, "--quiet"],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for name in ("alice", "bob")
    ]
    url = f"http://127.0.0.1:{port}"
    made = Service(url, created[0], created[1], data_dir, dict(environment), {})
    try:
        for command in ("serve", "work"):
            made.start(command)
        _wait_until_ready(made, len(models))
        yield made
    finally:
        for process in made.processes.values():
            process.terminate()
        for process in made.processes.values():
            process.wait(20)


def _wait_until_ready(service: Service, num_models: int) -> None:
    """Until every model is announced."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        if any(process.poll() is not None for process in service.processes.values()):
            break
        try:
            with service.http() as client:
                answer = client.get("/get_server_capabilities")
            if answer.is_success and len(answer.json()["supported_models"]) == num_models:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError((service.data_dir / "service.log").read_text()[-4000:])
