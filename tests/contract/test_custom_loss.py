"""A loss of the caller's own, on the server: what the official SDK computes itself, in half the passes."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tinker
import torch
from tinker import types
from tinker.lib.public_interfaces.custom_loss import LossHandle

from tests.contract.conftest import BASE_MODEL, Service
from tests.contract.recording_proxy import recording_proxy

TOKENS = [5, 9, 14, 3, 22, 41, 8, 17]


def surprise(logprobs: torch.Tensor, advantages: torch.Tensor, scale: torch.Tensor) -> Any:
    ratio = torch.exp(logprobs - logprobs.detach())
    loss = -(ratio * advantages).sum() * scale + 0.1 * logprobs.pow(2).mean()
    return loss, {"custom/mean_logprob:mean": logprobs.mean(), "custom/tokens:sum": ratio.sum()}


RANKS: Any = {"logprobs": 1, "advantages": 1, "scale": 0}


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[tinker.ServiceClient]:
    os.environ["TINKER_TELEMETRY"] = "0"
    with tinker.ServiceClient(base_url=service.url, api_key=service.api_key) as client:
        yield client


@pytest.fixture(scope="module")
def loss(client: tinker.ServiceClient) -> LossHandle:
    made = client.create_custom_loss(surprise, RANKS).result(60)
    assert made.loss_id
    return made


def data() -> list[types.Datum]:
    return [
        types.Datum(
            model_input=types.ModelInput.from_ints(tokens[:-1]),
            loss_fn_inputs={
                "target_tokens": tokens[1:],
                "advantages": np.linspace(-1, 1, len(tokens) - 1).astype(np.float32),  # type: ignore[dict-item]
                "scale": torch.tensor(0.5),  # type: ignore[dict-item]
            },
        )
        for tokens in (TOKENS, TOKENS[::-1], TOKENS[2:], TOKENS[:4], TOKENS[1:])
    ]


def train(run: tinker.TrainingClient, loss: LossHandle) -> list[dict[str, float]]:
    found = []
    for _ in range(3):
        output = run.forward_backward_custom(data(), loss)
        run.optim_step(types.AdamParams(learning_rate=1e-3)).result(60)
        found.append(dict(output.result(60).metrics))
    return found


def test_the_server_gives_what_the_client_would(
    client: tinker.ServiceClient, loss: LossHandle
) -> None:
    here = dataclasses.replace(loss, loss_id=None)
    on_server, on_client = (
        client.create_lora_training_client(BASE_MODEL, seed=4).result(60) for _ in range(2)
    )
    found, expected = train(on_server, loss), train(on_client, here)
    for one, other in zip(found, expected, strict=True):
        for key in ("loss:sum", "custom/mean_logprob:mean", "custom/tokens:sum"):
            assert one[key] == pytest.approx(other[key], abs=1e-6, rel=1e-6), key
    assert found[-1]["loss:sum"] < found[0]["loss:sum"]


def test_its_batch_goes_once_over_the_wire(service: Service) -> None:
    with (
        recording_proxy(service.url) as (url, arrived),
        tinker.ServiceClient(base_url=url, api_key=service.api_key) as client,
    ):
        run = client.create_lora_training_client(BASE_MODEL, seed=4).result(60)
        loss = client.create_custom_loss(surprise, RANKS).result(60)
        run.forward_backward_custom(data()[:2], loss).result(60)
    assert [path for path, _ in arrived].count("/forward_backward") == 1


def test_only_its_session_may_use_it(
    client: tinker.ServiceClient, service: Service, loss: LossHandle
) -> None:
    for key in (service.api_key, service.other_key):
        with tinker.ServiceClient(base_url=service.url, api_key=key) as other:
            run = other.create_lora_training_client(BASE_MODEL, seed=4).result(60)
            future = run.forward_backward(data(), "custom", {"loss_id": loss.loss_id or ""})
            with pytest.raises(tinker.RequestFailedError, match="this run's session"):
                future.result(60)
    run = client.create_lora_training_client(BASE_MODEL, seed=4).result(60)
    unknown = f"{client.holder.get_session_id()}:loss:99"
    future = run.forward_backward(data(), "custom", {"loss_id": unknown})
    with pytest.raises(tinker.RequestFailedError, match="there is no custom loss"):
        future.result(60)


def test_an_operation_that_is_not_allowed_fails_the_creation(client: tinker.ServiceClient) -> None:
    def noisy(logprobs: torch.Tensor) -> Any:
        return (logprobs * torch.rand_like(logprobs)).sum(), {}

    with pytest.raises(tinker.RequestFailedError, match="rand_like"):
        client.create_custom_loss(noisy, {"logprobs": 1}).result(60)


def test_a_repeat_finds_the_first_and_another_tenant_nothing(
    client: tinker.ServiceClient, service: Service
) -> None:
    graph = {
        "nodes": [
            {"op": "placeholder", "name": "logprobs", "target": "logprobs"},
            {"op": "call_method", "name": "total", "target": "sum", "args": [{"ref": "logprobs"}]},
            {
                "op": "output",
                "name": "output",
                "target": "output",
                "args": [[{"ref": "total"}, {"dict": {}}]],
            },
        ]
    }
    body = {
        "session_id": client.holder.get_session_id(),
        "custom_loss_seq_id": 50,
        "name": "x",
        "inputs": [{"name": "logprobs", "rank": 1}],
        "graph": graph,
    }
    with service.http() as http, service.http(service.other_key) as other:
        stubs = [http.post("/create_custom_loss", json=body).json() for _ in range(2)]
        assert stubs[0] == stubs[1]
        found = _result(http, stubs[0]["request_id"])
        assert found["loss_id"] == stubs[0]["request_id"]
        assert other.post("/create_custom_loss", json=body).status_code == 404
        assert other.post("/retrieve_future", json=stubs[0]).status_code == 410
        wrong = body | {"custom_loss_seq_id": 51, "graph": {"nodes": []}}
        stub = http.post("/create_custom_loss", json=wrong).json()
        assert "nodes" in _result(http, stub["request_id"])["error"]
        deep = httpx.Request("POST", "http://x", content=b'{"graph": ' + b"[" * 100_000).content
        assert http.post("/create_custom_loss", content=deep).status_code == 422


def _result(http: httpx.Client, request_id: str) -> Any:
    return http.post("/retrieve_future", json={"request_id": request_id}).json()
