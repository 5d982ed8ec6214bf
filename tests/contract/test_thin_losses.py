"""A loss that our own client traces: node for node what the official SDK sends, with the same values."""

from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest
import tinsmith
import torch
from tinker.lib.public_interfaces import custom_loss as official
from tinsmith.custom_loss import trace_loss

from tests.contract.conftest import BASE_MODEL, Service
from tests.contract.recording_proxy import recording_proxy
from tests.contract.test_clients import TOKENS, datum
from tests.contract.test_custom_loss import RANKS, surprise

BATCH = (TOKENS, TOKENS[::-1], TOKENS[2:])


def slices_and_constants(logprobs: torch.Tensor, advantages: torch.Tensor) -> Any:
    late = logprobs[..., 1:].masked_fill(advantages[1:] < 0, float("-inf"))
    kept = torch.where(late == float("-inf"), torch.zeros_like(late), late.to(torch.float32))
    both = torch.stack([kept, advantages[1:].clamp(min=-1, max=1)])
    loss = -torch.logsumexp(both, dim=0).sum() + 1 - logprobs.shape[0]
    return loss, {"custom/late:mean": kept.mean()}


@pytest.mark.parametrize(
    ("loss", "ranks"),
    [(surprise, RANKS), (slices_and_constants, {"logprobs": 1, "advantages": 1})],
)
def test_the_graph_is_the_sdks(loss: Any, ranks: Any) -> None:
    handle = official.trace_loss(loss, ranks, "session")
    theirs = official.encode_graph(handle).model_dump()
    ours = msgspec.to_builtins(trace_loss(loss, ranks))
    assert ours["graph"]["nodes"] == theirs["nodes"]
    assert ours["inputs"] == [one.model_dump() for one in handle.inputs]


def branches(logprobs: torch.Tensor) -> Any:
    return (logprobs.sum() if logprobs.sum() > 0 else -logprobs.sum()), {}


def noisy(logprobs: torch.Tensor) -> Any:
    return (logprobs * torch.rand_like(logprobs)).sum(), {}


def unnamed(logprobs: torch.Tensor) -> Any:
    return logprobs.sum(), {"mine": logprobs.sum()}


def captures(logprobs: torch.Tensor) -> Any:
    return (logprobs * torch.ones(7)).sum(), {}


def defaulted(logprobs: torch.Tensor, scale: float = 2.0) -> Any:
    return logprobs.sum() * scale, {}


@pytest.mark.parametrize(
    ("loss", "ranks", "said"),
    [
        (branches, {"logprobs": 1}, "may not branch"),
        (noisy, {"logprobs": 1}, "rand_like"),
        (unnamed, {"logprobs": 1}, "mine"),
        (captures, {"logprobs": 1}, "create_custom_loss"),
        (defaulted, {"logprobs": 1, "scale": 0}, "scale"),
        (surprise, {"logprobs": 1}, "advantages"),
        (surprise, RANKS | {"logprobs": 0}, "logprobs"),
        (surprise, RANKS | {"scale": 3}, "scale"),
    ],
)
def test_what_the_service_would_refuse_is_told_at_once(loss: Any, ranks: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        trace_loss(loss, ranks)


def data(tinker: ModuleType, **more: Any) -> list[Any]:
    return [
        tinker.types.Datum(
            model_input=tinker.types.ModelInput.from_ints(tokens[:-1]),
            loss_fn_inputs={
                "target_tokens": tokens[1:],
                "advantages": np.linspace(-1, 1, len(tokens) - 1).astype(np.float32),
                "scale": torch.tensor(0.5),
                **more,
            },
        )
        for tokens in BATCH
    ]


def test_the_service_computes_it_in_one_pass(tinker: ModuleType, service: Service) -> None:
    with (
        recording_proxy(service.url) as (url, arrived),
        tinker.ServiceClient(base_url=url, api_key=service.api_key) as client,
    ):
        run = client.create_lora_training_client(BASE_MODEL, seed=4).result(60)
        loss = client.create_custom_loss(surprise, RANKS).result(60)
        found = run.forward_backward_custom(data(tinker), loss).result(60).metrics
        with pytest.raises(ValueError, match="scale"):
            run.forward_backward_custom(data(tinker, scale=np.ones(2, np.float32)), loss).result(60)
        plain = [datum(tinker, tokens) for tokens in BATCH]
        rows = run.forward(plain, "cross_entropy").result(60).loss_fn_outputs
    sent = [path for path, _ in arrived].count("/forward_backward")
    assert sent == 4  # three datums are two chunks, twice
    logprobs = [torch.tensor(row["logprobs"].data) for row in rows]
    given = [
        [one.loss_fn_inputs[name].to_torch() for name in ("advantages", "scale")]
        for one in data(tinsmith)
    ]
    expected = [surprise(row, *more) for row, more in zip(logprobs, given, strict=True)]
    assert found["loss:sum"] == pytest.approx(sum(float(loss) for loss, _ in expected), abs=1e-5)
    means = [float(metrics["custom/mean_logprob:mean"]) for _, metrics in expected]
    assert found["custom/mean_logprob:mean"] == pytest.approx(sum(means) / 3, abs=1e-5)
