"""Inflight samplers and alternatives to a prompt's tokens, through both clients."""

import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from tests.contract.conftest import BASE_MODEL, Service

TOKENS = [5, 9, 14, 3, 22, 41]


@pytest.fixture(scope="module")
def client(tinker: ModuleType, service: Service) -> Iterator[Any]:
    os.environ["TINKER_TELEMETRY"] = "0"
    with tinker.ServiceClient(base_url=service.url, api_key=service.api_key) as client:
        yield client


def train(tinker: ModuleType, run: Any) -> None:
    one = tinker.types.Datum(
        model_input=tinker.types.ModelInput.from_ints([5, 9, 14]),
        loss_fn_inputs={"target_tokens": [9, 14, 3], "weights": [1.0, 1.0, 1.0]},
    )
    run.forward_backward([one], "cross_entropy").result(60)
    run.optim_step(tinker.types.AdamParams(learning_rate=1e-2)).result(60)


def test_inflight_samplers_go_on_with_the_newest_weights_and_a_snapshot_stays(
    tinker: ModuleType, client: Any
) -> None:
    prompt = tinker.types.ModelInput.from_ints(TOKENS)
    run = client.create_lora_training_client(BASE_MODEL, seed=1).result(60)
    train(tinker, run)
    snapshot = run.save_weights_and_get_sampling_client().result(60)
    first = run.save_weights_and_get_sampling_client(kind="inflight").result(60)
    before = first.compute_logprobs(prompt).result(60)
    assert snapshot.compute_logprobs(prompt).result(60) == before
    train(tinker, run)
    assert first.compute_logprobs(prompt).result(60) == before  # until they are saved
    second = run.save_weights_and_get_sampling_client(kind="inflight").result(60)
    after = second.compute_logprobs(prompt).result(60)
    assert after != before
    assert first.compute_logprobs(prompt).result(60) == after
    assert snapshot.compute_logprobs(prompt).result(60) == before


def test_a_run_does_not_touch_anothers_inflight_samplers(tinker: ModuleType, client: Any) -> None:
    prompt = tinker.types.ModelInput.from_ints(TOKENS)
    runs = [client.create_lora_training_client(BASE_MODEL, seed=1).result(60) for _ in range(2)]
    samplers = [
        run.save_weights_and_get_sampling_client(kind="inflight").result(60) for run in runs
    ]
    before = samplers[0].compute_logprobs(prompt).result(60)
    train(tinker, runs[1])
    runs[1].save_weights_and_get_sampling_client(kind="inflight").result(60)
    assert samplers[0].compute_logprobs(prompt).result(60) == before
    assert samplers[1].compute_logprobs(prompt).result(60) != before


def test_alternatives_to_every_prompt_token(
    tinker: ModuleType, client: Any, service: Service
) -> None:
    prompt = tinker.types.ModelInput.from_ints(TOKENS)
    sampler = client.create_sampling_client(base_model=BASE_MODEL).result(60)
    params = tinker.types.SamplingParams(max_tokens=1, seed=3)
    answers = [
        sampler.sample(prompt, 1, params, prompt_alt_tokens_k=3).result(60) for _ in range(2)
    ]
    drawn = [answer.prompt_alt_tokens for answer in answers]
    assert drawn[0] is not None
    assert drawn[1] is not None
    tokens, logprobs = drawn[0].tokens.to_numpy(), drawn[0].logprobs.to_numpy()
    assert tokens.shape == logprobs.shape == (5, 3)
    assert (logprobs < 0).all()
    assert (drawn[1].tokens.to_numpy() == tokens).all()
    with pytest.raises(tinker.RequestFailedError, match="prompt_alt_tokens_k"):
        sampler.sample(prompt, 1, params, prompt_alt_tokens_k=100_000).result(60)
