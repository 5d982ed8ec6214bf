"""What only our own client does: no hub, no wait for a typo, and the user guide as it is printed."""

import asyncio
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import CancelledError

import httpx
import pytest
import tinsmith
from tinsmith import types

from tests.contract.conftest import BASE_MODEL, Service

# The Tinker script of the user guide. Where the guide writes (...) stands what a user puts there.
GUIDE = """
import {library} as tinker

service_client = tinker.ServiceClient()
training_client = service_client.create_lora_training_client(
    base_model="{base_model}",
    rank=32,
)
datum = tinker.types.Datum(
    model_input=tinker.types.ModelInput.from_ints([5, 9, 14]),
    loss_fn_inputs={{"target_tokens": [9, 14, 3], "weights": [1.0, 1.0, 1.0]}},
)
training_client.forward_backward([datum], "cross_entropy")
training_client.optim_step(tinker.types.AdamParams(learning_rate=1e-4))
training_client.save_state("guide-{library}")
sampling_client = training_client.save_weights_and_get_sampling_client(
    name="my_distilled_model"
)
answer = sampling_client.sample(
    tinker.types.ModelInput.from_ints([5, 9]), 1, tinker.types.SamplingParams(max_tokens=4)
).result()
print(len(answer.sequences[0].tokens))
"""


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[tinsmith.ServiceClient]:
    with tinsmith.ServiceClient(base_url=service.url, api_key=service.api_key) as client:
        yield client


@pytest.mark.parametrize("library", ["tinker", "tinsmith"])
def test_the_users_guide_runs_as_printed(service: Service, library: str) -> None:
    environment = os.environ | {
        "TINKER_BASE_URL": service.url,
        "TINKER_API_KEY": service.api_key,
        "TINKER_TELEMETRY": "0",
    }
    script = GUIDE.format(library=library, base_model=BASE_MODEL)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    assert 1 <= int(done.stdout) <= 4


def test_a_named_sampler_of_the_guide_is_kept_under_its_name(
    client: tinsmith.ServiceClient,
) -> None:
    run = client.create_lora_training_client(BASE_MODEL, rank=2)
    run.save_weights_and_get_sampling_client(name="kept").result(60)
    listed = client.create_rest_client().list_checkpoints(run.model_id).result(60).checkpoints
    assert [one.checkpoint_id for one in listed] == ["sampler_weights/kept"]


def test_the_tokenizer_comes_from_the_service(
    client: tinsmith.ServiceClient,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run = client.create_lora_training_client(BASE_MODEL, rank=2).result(60)
    sampler = client.create_sampling_client(base_model=BASE_MODEL).result(60)
    for tokenizer in (run.get_tokenizer(), sampler.get_tokenizer()):
        assert tokenizer.encode("w7 w9 w50") == [7, 9, 50]


def test_a_cancelled_sample_leaves_its_neighbours_alone(client: tinsmith.ServiceClient) -> None:
    sampler = client.create_sampling_client(base_model=BASE_MODEL).result(60)
    params = types.SamplingParams(max_tokens=100, stop=[])
    futures = [sampler.sample(types.ModelInput.from_ints([4]), 64, params) for _ in range(8)]
    futures[-1].future().cancel()
    with pytest.raises(CancelledError):
        futures[-1].result(60)
    assert all(len(future.result(60).sequences) == 64 for future in futures[:-1])


_CLONE = """
import pickle, sys, tinsmith
sampler = pickle.load(sys.stdin.buffer)
params = tinsmith.SamplingParams(max_tokens=4, temperature=0.0, stop=[])
for _ in range(2):
    answer = sampler.sample(tinsmith.ModelInput.from_ints([4, 7]), 1, params).result(60)
    print(answer.sequences[0].sequence_id, *answer.sequences[0].tokens)
"""


def test_a_pickled_sampler_samples_the_same_under_numbers_of_its_own(
    client: tinsmith.ServiceClient, service: Service
) -> None:
    run = client.create_lora_training_client(BASE_MODEL, rank=4, seed=1).result(60)
    sampler = run.save_weights_and_get_sampling_client().result(60)
    params = types.SamplingParams(max_tokens=4, temperature=0.0, stop=[])
    pickled = pickle.dumps(sampler)
    assert service.api_key.encode() not in pickled
    said = subprocess.run(
        [sys.executable, "-c", _CLONE],
        input=pickled,
        env=os.environ | {"TINKER_API_KEY": service.api_key},
        check=True,
        capture_output=True,
    )
    clone = tinsmith.SamplingClient.from_sampler_handle(
        sampler.get_sampler_handle(), api_key=service.api_key
    )
    lines = [line.split() for line in said.stdout.decode().splitlines()]
    for one in (sampler, clone):
        [sequence] = one.sample(types.ModelInput.from_ints([4, 7]), 1, params).result(60).sequences
        lines.append([sequence.sequence_id, *map(str, sequence.tokens)])
    assert len({id_ for id_, *_ in lines}) == 4
    assert len({tuple(tokens) for _, *tokens in lines}) == 1
    stranger = tinsmith.SamplingClient.from_sampler_handle(
        sampler.get_sampler_handle(), api_key=service.other_key
    )
    with pytest.raises(tinsmith.NotFoundError):
        stranger.sample(types.ModelInput.from_ints([4]), 1, params).result(60)
    with pytest.raises(ValueError, match="handle"):
        tinsmith.SamplingClient.from_sampler_handle("nothing")


def test_the_console_has_the_pages_that_the_client_names(
    client: tinsmith.ServiceClient, service: Service
) -> None:
    run = client.create_lora_training_client(BASE_MODEL, rank=2, seed=1).result(60)
    assert run.get_console_url() == f"{service.url}/training_runs/{run.model_id}"
    session_id = run.model_id.partition(":")[0]
    assert client.get_console_url() == f"{service.url}/sessions/{session_id}"
    for page in (run.get_console_url(), client.get_console_url()):
        answer = httpx.get(page, follow_redirects=False)  # a person who has not signed in
        assert answer.status_code == 303, answer.text[:200]


def test_giving_up_a_wait_undoes_nothing(client: tinsmith.ServiceClient) -> None:
    run = client.create_lora_training_client(BASE_MODEL, rank=2, seed=1).result(60)
    step = run.optim_step(types.AdamParams())
    with pytest.raises(TimeoutError):
        step.result(0)
    assert run.optim_step(types.AdamParams()).result(60).metrics == {
        **(step.result(60).metrics or {}),
        "step": 2.0,
    }


def test_awaiting_from_a_loop_of_ones_own(client: tinsmith.ServiceClient) -> None:
    async def flow() -> int:
        sampler = await client.create_sampling_client_async(base_model=BASE_MODEL)
        params = types.SamplingParams(max_tokens=3, stop=[])
        answers = await asyncio.gather(
            *(sampler.sample_async(types.ModelInput.from_ints([n]), 1, params) for n in range(3, 9))
        )
        return sum(len(answer.sequences[0].tokens) for answer in answers)

    assert asyncio.run(flow()) == 18


def test_a_wrong_address_is_told_after_a_short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinsmith.transport._FIRST_PATIENCE_SECONDS", 1)
    nobody = tinsmith.ServiceClient(base_url="http://127.0.0.1:9", api_key="tml-x")
    with pytest.raises(tinsmith.APIConnectionError, match=r"127\.0\.0\.1:9"):
        nobody.get_server_capabilities()


def test_a_missing_address_or_key_is_told_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TINKER_BASE_URL", raising=False)
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    with pytest.raises(tinsmith.TinkerError, match="TINKER_BASE_URL"):
        tinsmith.ServiceClient(api_key="tml-x")
    with pytest.raises(tinsmith.TinkerError, match="TINKER_API_KEY"):
        tinsmith.ServiceClient(base_url="http://127.0.0.1:9")
