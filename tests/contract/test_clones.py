"""Sampling clients that travel to other processes, as the official SDK pickles them."""

import os
import pickle
import subprocess
import sys

import tinker

from tests.contract.conftest import BASE_MODEL, Service
from tests.contract.recording_proxy import recording_proxy
from tests.contract.test_clients import TOKENS, train

PROMPT = tinker.ModelInput.from_ints(TOKENS)
GREEDY = tinker.SamplingParams(max_tokens=4, temperature=0.0, stop=[])
_CLONE = """
import pickle, sys, tinker
sampler = pickle.load(sys.stdin.buffer)
params = tinker.SamplingParams(max_tokens=4, temperature=0.0, stop=[])
prompt = tinker.ModelInput.from_ints([int(word) for word in sys.argv[1:]])
for _ in range(2):
    print(*sampler.sample(prompt, 1, params).result(60).sequences[0].tokens)
"""


def test_a_pickled_client_samples_the_same_weights_in_another_process(service: Service) -> None:
    with tinker.ServiceClient(base_url=service.url, api_key=service.api_key) as client:
        run = client.create_lora_training_client(BASE_MODEL, rank=4, seed=1).result(60)
        train(tinker, run, 2)
        sampler = run.save_weights_and_get_sampling_client().result(60)
        expected = sampler.sample(PROMPT, 1, GREEDY).result(60).sequences[0].tokens
        train(tinker, run, 2)
        said = subprocess.run(
            [sys.executable, "-c", _CLONE, *map(str, TOKENS)],
            input=pickle.dumps(sampler),
            env=os.environ | {"TINKER_API_KEY": service.api_key, "TINKER_TELEMETRY": "0"},
            check=True,
            capture_output=True,
        )
    assert said.stdout.decode().splitlines() == [" ".join(map(str, expected))] * 2


def test_every_clone_gets_a_number_of_its_own(service: Service) -> None:
    with (
        recording_proxy(service.url) as (url, arrived),
        tinker.ServiceClient(base_url=url, api_key=service.api_key) as client,
    ):
        sampler = client.create_sampling_client(base_model=BASE_MODEL).result(60)
        handle = sampler.get_sampler_handle()
        clones = [
            tinker.SamplingClient.from_sampler_handle(handle, api_key=service.api_key)
            for _ in range(2)
        ]
        answers = [one.sample(PROMPT, 1, GREEDY).result(60) for one in (sampler, *clones)]
    assert len({answer.sequences[0].sequence_id for answer in answers}) == 3
    assert len({tuple(answer.sequences[0].tokens) for answer in answers}) == 1
    joined = [path for path, _ in arrived if path == "/join_sampling_session"]
    assert len(joined) == 2
    ids = [answer.sequences[0].sequence_id or "" for answer in answers]
    assert sorted(int(name.split(":")[-2]) // 10**9 for name in ids) == [0, 1, 2]


def test_joining_is_for_the_owner(service: Service) -> None:
    with tinker.ServiceClient(base_url=service.url, api_key=service.api_key) as client:
        client.create_sampling_client(base_model=BASE_MODEL).result(60)
        session = client.holder.get_session_id()
        rest = tinker.RestClient(base_url=service.url, api_key=service.api_key)
        [sampler_id] = rest.get_session(session).result(30).sampler_ids
        with service.http(service.other_key) as http:
            body = {"sampling_session_id": sampler_id}
            assert http.post("/join_sampling_session", json=body).status_code == 404
