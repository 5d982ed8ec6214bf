"""Optimizers, provenance and stable_reinforce through both clients."""

import dataclasses
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import httpx
import pytest
import tinker as official_sdk
from tinker.types.optimizer import OptimizerConfigBase
from tinsmith.optimizers import OptimizerConfig

from tests.contract.conftest import BASE_MODEL, Service
from tests.contract.recording_proxy import recording_proxy

PROMPT = [5, 9, 14, 3]


@pytest.fixture(scope="module")
def client(tinker: ModuleType, service: Service) -> Iterator[Any]:
    os.environ["TINKER_TELEMETRY"] = "0"
    with tinker.ServiceClient(base_url=service.url, api_key=service.api_key) as client:
        yield client


def datum(tinker: ModuleType) -> Any:
    tokens = [5, 9, 14, 3, 22, 41, 8, 17]
    return tinker.types.Datum(
        model_input=tinker.types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": [1.0] * 7},
    )


def steps(tinker: ModuleType, run: Any, count: int) -> list[float]:
    found = []
    for _ in range(count):
        output = run.forward_backward([datum(tinker)], "cross_entropy")
        run.optim_step(tinker.types.DimuonParams(learning_rate=0.02)).result(60)
        found.append(output.result(60).metrics["loss:sum"])
    return found


def test_dimuon_learns_and_resumes(tinker: ModuleType, client: Any, service: Service) -> None:
    run = client.create_lora_training_client(
        BASE_MODEL, rank=4, seed=1, optimizer=tinker.types.DimuonOptimizerConfig()
    ).result(60)
    config = run.get_info().optimizer_config
    assert config is not None
    assert config.type == "dimuon"
    losses = steps(tinker, run, 4)
    assert losses[-1] < losses[0]
    path = run.save_state("muon").result(60).path
    expected = steps(tinker, run, 3)
    resumed = client.create_training_client_from_state_with_optimizer(path).result(60)
    assert steps(tinker, resumed, 3) == expected
    with pytest.raises(tinker.RequestFailedError, match="created with"):
        run.optim_step(tinker.types.AdamParams()).result(60)
    with service.http() as http:
        info = http.post("/weights_info", json={"tinker_path": path}).json()
    assert info["optimizer_config"] == {"type": "dimuon", "version": 1}


def test_an_optimizer_that_nobody_knows_is_refused_by_name(
    tinker: ModuleType, client: Any, service: Service
) -> None:
    class Sgd(OptimizerConfigBase, frozen=True, extra="allow"):
        type: str = "sgd"

    unknown = Sgd() if tinker is official_sdk else OptimizerConfig(type="sgd")
    with pytest.raises(tinker.BadRequestError, match="sgd"):
        client.create_lora_training_client(BASE_MODEL, optimizer=unknown).result(60)
    run = client.create_lora_training_client(BASE_MODEL).result(60)
    with service.http() as http:
        for seq_id, (params, field) in enumerate(
            [
                ({"type": "sgd", "lr": 1}, "sgd"),
                ({"learning_rate": 1}, "type"),
                ({"type": "dimuon", "learning_rate": 1}, "created with"),
                ({"type": "adamw", "learning_rat": 1}, "learning_rat"),
                ({"type": "adamw", "learning_rate": "x"}, "learning_rate"),
            ],
            1,
        ):
            body = {"model_id": run.model_id, "seq_id": seq_id, "optimizer_params": params}
            stub = http.post("/optim_step", json=body).json()
            assert field in http.post("/retrieve_future", json=stub).json()["error"]


# Provenance


def sampled(tinker: ModuleType, client: Any, run: Any, record: bool = True) -> Any:
    sampler = run.save_weights_and_get_sampling_client(record_stability_info=record).result(60)
    params = tinker.types.SamplingParams(max_tokens=5, seed=3, stop=[])
    answer = sampler.sample(tinker.types.ModelInput.from_ints(PROMPT), 1, params).result(60)
    return answer.sequences[0]


def trained_on(tinker: ModuleType, sequence: Any, **change: Any) -> Any:
    tokens = PROMPT + list(sequence.tokens)
    count, id_ = len(sequence.tokens), sequence.sequence_id or ""
    targets = change.get("targets", tokens[1:])
    advantages = change.get("advantages", [0.0] * (len(PROMPT) - 1) + [1.0] * count)
    return tinker.types.Datum(
        model_input=tinker.types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": targets, "advantages": advantages},
    ).with_provenance(
        model_input=[
            tinker.types.PromptProvenanceSpan(sequence_id=id_, offset=0, length=len(PROMPT)),
            tinker.types.SampledProvenanceSpan(sequence_id=id_, offset=0, length=count - 1),
        ],
        loss_fn_inputs=[
            tinker.types.PromptProvenanceSpan(sequence_id=id_, offset=1, length=len(PROMPT) - 1),
            tinker.types.SampledProvenanceSpan(
                sequence_id=id_, offset=change.get("offset", 0), length=count
            ),
        ],
    )


def test_stable_reinforce_uses_what_was_recorded_and_says_whose_rule_it_is(
    tinker: ModuleType, service: Service
) -> None:
    with (
        recording_proxy(service.url) as (url, arrived),
        tinker.ServiceClient(base_url=url, api_key=service.api_key) as client,
    ):
        run = client.create_lora_training_client(BASE_MODEL, seed=1).result(60)
        sequence = sampled(tinker, client, run)
        one = trained_on(tinker, sequence)
        output = run.forward_backward([one], "stable_reinforce", {"kl_coeff": 0.1}).result(60)
        # On policy: every ratio is 1, so the loss is that of plain REINFORCE.
        scores = output.loss_fn_outputs[0]["logprobs"].data[len(PROMPT) - 1 :]
        assert output.metrics["loss:sum"] == pytest.approx(-sum(scores), abs=1e-3)
        run.optim_step(tinker.types.AdamParams(learning_rate=0.05)).result(60)
        again = run.forward([one], "stable_reinforce", {"kl_coeff": 0.1}).result(60)
        new = again.loss_fn_outputs[0]["logprobs"].data[len(PROMPT) - 1 :]
        assert sum(new) > sum(scores)
    requests = [request for path, request in arrived if path == "/forward_backward"]
    notes = []
    with service.http() as http:
        for request in requests:
            body = {"content": request.content, "headers": _headers(request)}
            answer = http.post("/forward_backward", **body)  # type: ignore[arg-type]
            notes.append(answer.headers.get("x-deprecation-note"))
    assert notes == [None, None]  # told already, in the first answer


def _headers(request: httpx.Request) -> dict[str, str]:
    wanted = ("content-type", "content-encoding")
    return {name: value for name, value in request.headers.items() if name in wanted}


def test_the_note_comes_once_for_each_run(
    tinker: ModuleType, client: Any, service: Service
) -> None:
    run = client.create_lora_training_client(BASE_MODEL, seed=1).result(60)
    data = {"model_input": {"chunks": [{"tokens": [1]}]}, "loss_fn_inputs": {}}
    given = {"data": [data], "loss_fn": "stable_reinforce"}
    with service.http() as http:
        notes = []
        for seq_id in (1, 2):
            body = {"model_id": run.model_id, "seq_id": seq_id, "forward_backward_input": given}
            notes.append("x-deprecation-note" in http.post("/forward_backward", json=body).headers)
    assert notes == [True, False]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"advantages": [1.0] * 8}, "advantages"),
        ({"targets": [7] * 8}, "target_tokens"),
        ({"offset": 1}, "sampled tokens"),
    ],
)
def test_spans_that_do_not_fit_what_was_sampled_are_refused(
    tinker: ModuleType, client: Any, change: dict[str, Any], field: str
) -> None:
    run = client.create_lora_training_client(BASE_MODEL, seed=1).result(60)
    one = trained_on(tinker, sampled(tinker, client, run), **change)
    with pytest.raises(tinker.RequestFailedError, match=field):
        run.forward_backward([one], "stable_reinforce").result(60)


def test_what_was_not_recorded_cannot_be_used(
    tinker: ModuleType, client: Any, service: Service
) -> None:
    run = client.create_lora_training_client(BASE_MODEL, seed=1).result(60)
    sequence = sampled(tinker, client, run, record=False)
    with pytest.raises(tinker.RequestFailedError, match="record_stability_info"):
        run.forward_backward([trained_on(tinker, sequence)], "stable_reinforce").result(60)
    with pytest.raises(tinker.RequestFailedError, match="provenance"):
        run.forward_backward([datum(tinker)], "stable_reinforce").result(60)
    recorded = sampled(tinker, client, run)
    with tinker.ServiceClient(base_url=service.url, api_key=service.other_key) as other:
        theirs = other.create_lora_training_client(BASE_MODEL, seed=1).result(60)
        with pytest.raises(tinker.RequestFailedError, match="this run's session"):
            theirs.forward_backward([trained_on(tinker, recorded)], "stable_reinforce").result(60)


def test_spans_are_checked_on_every_loss(tinker: ModuleType, client: Any) -> None:
    run = client.create_lora_training_client(BASE_MODEL, seed=1).result(60)
    span = tinker.types.SampledProvenanceSpan(sequence_id="anything", offset=0, length=7)
    whole = datum(tinker).with_provenance(model_input=[span], loss_fn_inputs=[span])
    assert run.forward_backward([whole], "cross_entropy").result(60).metrics["loss:sum"] > 0
    short = tinker.types.SampledProvenanceSpan(sequence_id="anything", offset=0, length=6)
    for change in ({"model_input_spans": [short]}, {"loss_fn_input_spans": [short]}):
        wrong = dataclasses.replace(whole, **change)
        with pytest.raises(tinker.RequestFailedError, match=r"_spans: they cover 6"):
            run.forward_backward([wrong], "cross_entropy").result(60)
