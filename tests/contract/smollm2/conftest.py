"""SmolLM2-135M behind a service of its own, with a trained adapter, and that adapter as a PEFT folder."""

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tinker
from redis import Redis
from transformers import AutoTokenizer

from tests.conftest import running_valkey
from tests.contract.conftest import Service, running_service
from tests.models import prepared_smollm2

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Tuned:
    service: Service
    base: Path
    """The base model's folder."""
    adapter: Path
    """The checkpoint, downloaded."""
    path: str
    """The same, as `tinker://`."""
    redis: "Redis[bytes]"


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuned]:
    folder, base = tmp_path_factory.mktemp("tuned"), prepared_smollm2()
    settings = {"TINSMITH_MAX_SAMPLING_SLOTS": "8", "TINSMITH_FWDBWD_MAX_CHUNK_LEN": "128"}
    with (
        running_valkey(folder) as valkey_url,
        running_service(folder, valkey_url, {SMOLLM2: base}, **settings) as service,
    ):
        path, redis = _train(service, base), Redis.from_url(valkey_url)
        yield Tuned(service, base, _download(service, path, folder / "adapter"), path, redis)


def _train(service: Service, base: Path) -> str:
    """A few large steps on one sentence, so that the adapter is far from nothing."""
    os.environ["TINKER_TELEMETRY"] = "0"
    tokens = AutoTokenizer.from_pretrained(base).encode("The sky over the old harbour is green.")
    datum = tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)},
    )
    with tinker.ServiceClient(base_url=service.url, api_key=service.api_key) as client:
        # transformers cannot tie weights again once peft has wrapped the head, which lm-eval asks of it.
        run = client.create_lora_training_client(
            base_model=SMOLLM2, rank=4, seed=1, train_unembed=False
        )
        for _ in range(3):
            run.forward_backward([datum], "cross_entropy").result(120)
            run.optim_step(tinker.AdamParams(learning_rate=2e-3)).result(120)
        return str(run.save_weights_for_sampler("tuned").result(120).path)


def _download(service: Service, path: str, folder: Path) -> Path:
    run, kind, name = path.removeprefix("tinker://").split("/")
    with service.http() as http:
        http.follow_redirects = True
        answer = http.get(f"/training_runs/{run}/checkpoints/{kind}/{name}/archive")
    # The archive is of the service under test; `filter` came with Python 3.11.4.
    with tarfile.open(fileobj=io.BytesIO(answer.raise_for_status().content)) as archive:
        archive.extractall(folder)
    return folder
