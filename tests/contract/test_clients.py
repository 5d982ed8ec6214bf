"""The compatibility claim: the official SDK, unpatched, over a real socket, does all of this.

So does our own client, under the same names: each test runs with both.
"""

import asyncio
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
import tinker as official_sdk
import torch
import zstandard
from tinsmith.protocol import wire_pb2 as pb
from transformers import AutoModelForCausalLM

from tests.contract.conftest import BASE_MODEL, CONTEXT, SECOND_MODEL, VOCAB, Service
from tests.contract.recording_proxy import recording_proxy

TOKENS = [5, 9, 14, 3, 22, 41, 8, 17]


@pytest.fixture(scope="module")
def client(tinker: ModuleType, service: Service) -> Iterator[Any]:
    os.environ["TINKER_TELEMETRY"] = "0"
    with tinker.ServiceClient(base_url=service.url, api_key=service.api_key) as client:
        yield client


def datum(
    tinker: ModuleType, tokens: list[int] = TOKENS, weights: list[float] | None = None
) -> Any:
    weights = weights or [1.0] * (len(tokens) - 1)
    return tinker.types.Datum(
        model_input=tinker.types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": weights},
    )


def adam(tinker: ModuleType, learning_rate: float = 1e-2, **more: float) -> Any:
    return tinker.types.AdamParams(learning_rate=learning_rate, **more)


def train(tinker: ModuleType, run: Any, steps: int) -> list[float]:
    """Losses before each of so many steps; step and gradient are pipelined."""
    losses = []
    for _ in range(steps):
        gradient = run.forward_backward(
            [datum(tinker), datum(tinker, TOKENS[::-1])], "cross_entropy"
        )
        step = run.optim_step(adam(tinker))
        losses.append(gradient.result(60).metrics["loss:sum"])
        step.result(60)
    return losses


def logprobs(output: Any) -> list[np.ndarray]:
    return [np.asarray(row["logprobs"].data, np.float32) for row in output.loss_fn_outputs]


def test_capabilities_name_both_models(tinker: ModuleType, client: Any) -> None:
    models = client.get_server_capabilities().supported_models
    assert [model.model_name for model in models] == [BASE_MODEL, SECOND_MODEL]
    assert models[0].max_context_length == CONTEXT


def test_training_lowers_the_loss_and_reports_what_it_did(tinker: ModuleType, client: Any) -> None:
    run = client.create_lora_training_client(BASE_MODEL, rank=8, seed=1).result(60)
    info = run.get_info()
    assert (info.lora_rank, info.model_data.model_name) == (8, BASE_MODEL)
    losses = train(tinker, run, 8)
    assert losses[-1] < 0.7 * losses[0]
    metrics = run.optim_step(adam(tinker, 0.0)).result(60).metrics
    assert metrics is not None
    assert metrics["grad_norm"] == 0.0


def test_two_base_models_train_at_once(tinker: ModuleType, client: Any) -> None:
    runs = [
        client.create_lora_training_client(name, seed=1).result(60)
        for name in (BASE_MODEL, SECOND_MODEL)
    ]
    first = [run.forward([datum(tinker)], "cross_entropy") for run in runs]
    losses = [future.result(60).metrics["loss:sum"] for future in first]
    assert losses[0] != pytest.approx(losses[1], abs=1e-3)


def test_chunks_arrive_out_of_order_and_mean_the_whole(tinker: ModuleType, client: Any) -> None:
    # The service under test announces chunks of two datums, so five datums travel as 2, 3, 1.
    data = [datum(tinker, TOKENS[shift:] + TOKENS[:shift]) for shift in range(5)]
    run = client.create_lora_training_client(BASE_MODEL, seed=1).result(60)
    whole = run.forward_backward(data, "cross_entropy").result(60)
    assert len(whole.loss_fn_outputs) == 5
    assert whole.metrics["loss:sum"] == pytest.approx(
        -sum(float(row.sum()) for row in logprobs(whole)), rel=1e-5
    )
    for one, row in zip(data, logprobs(whole), strict=True):
        alone = logprobs(run.forward([one], "cross_entropy").result(60))[0]
        assert np.array_equal(alone, row)


def test_the_official_sdk_posts_the_first_chunk_last(service: Service) -> None:
    data = [datum(official_sdk, TOKENS[shift:] + TOKENS[:shift]) for shift in range(5)]
    with (
        recording_proxy(service.url) as (url, arrived),
        official_sdk.ServiceClient(base_url=url, api_key=service.api_key) as client,
    ):
        run = client.create_lora_training_client(BASE_MODEL, seed=1).result(60)
        output = run.forward_backward(data, "cross_entropy").result(60)
        run.optim_step(adam(official_sdk)).result(60)
    chunks = [
        pb.ForwardBackwardRequest.FromString(_unpacked(request))
        for path, request in arrived
        if path == "/forward_backward"
    ]
    assert {chunk.seq_id: len(chunk.data) for chunk in chunks} == {1: 2, 2: 2, 3: 1}
    assert chunks[-1].seq_id == 1
    assert len(output.loss_fn_outputs) == 5


def _unpacked(request: httpx.Request) -> bytes:
    if request.headers.get("content-encoding") == "zstd":
        return zstandard.ZstdDecompressor().decompressobj().decompress(request.content)
    return request.content


def test_resuming_with_optimizer_gives_the_same_losses_as_never_having_stopped(
    tinker: ModuleType, client: Any, service: Service
) -> None:
    run = client.create_lora_training_client(BASE_MODEL, rank=4, seed=3).result(60)
    train(tinker, run, 3)
    path = run.save_state("halfway").result(60).path
    assert path == f"tinker://{run.model_id}/weights/halfway"
    expected = train(tinker, run, 4)
    with tinker.ServiceClient(base_url=service.url, api_key=service.api_key) as fresh:
        resumed = fresh.create_training_client_from_state_with_optimizer(path).result(60)
        assert train(tinker, resumed, 4) == expected
        without = fresh.create_training_client_from_state(path).result(60)
        losses = train(tinker, without, 4)
    assert losses[0] == expected[0]
    assert losses[1:] != expected[1:]


def test_load_state_into_a_live_run_goes_back_exactly(tinker: ModuleType, client: Any) -> None:
    run = client.create_lora_training_client(BASE_MODEL, rank=4, seed=3).result(60)
    train(tinker, run, 2)
    path = run.save_state("back").result(60).path
    expected = train(tinker, run, 3)
    run.load_state_with_optimizer(path).result(60)
    assert train(tinker, run, 3) == expected


def test_a_sampler_keeps_the_weights_of_its_moment(tinker: ModuleType, client: Any) -> None:
    run = client.create_lora_training_client(BASE_MODEL, seed=1).result(60)
    before = run.save_weights_and_get_sampling_client().result(60)
    prompt = tinker.types.ModelInput.from_ints(TOKENS)
    scored = before.compute_logprobs(prompt).result(60)
    assert scored[0] is None
    train(tinker, run, 3)
    after = run.save_weights_and_get_sampling_client().result(60)
    assert before.compute_logprobs(prompt).result(60) == scored
    assert after.compute_logprobs(prompt).result(60) != scored
    trainer = logprobs(run.forward([datum(tinker)], "cross_entropy").result(60))[0]
    sampler = np.asarray(after.compute_logprobs(prompt).result(60)[1:], np.float32)
    np.testing.assert_allclose(sampler, trainer, atol=1e-4)


def test_an_untrained_adapter_samples_like_the_base_model(tinker: ModuleType, client: Any) -> None:
    run = client.create_lora_training_client(BASE_MODEL, seed=9).result(60)
    path = run.save_weights_for_sampler("fresh").result(60).path
    prompt = tinker.types.ModelInput.from_ints(TOKENS)
    params = tinker.types.SamplingParams(max_tokens=6, seed=4, temperature=1.0)
    tuned = client.create_sampling_client(model_path=path).result(60)
    base = client.create_sampling_client(base_model=BASE_MODEL).result(60)
    assert tuned.get_base_model() == BASE_MODEL
    answers = [
        sampler.sample(prompt, num_samples=2, sampling_params=params).result(60)
        for sampler in (tuned, base)
    ]
    tokens = [[sequence.tokens for sequence in answer.sequences] for answer in answers]
    assert tokens[0] == tokens[1]
    assert tokens[0][0] != tokens[0][1]


def test_stops_lengths_and_greedy(tinker: ModuleType, client: Any) -> None:
    sampler = client.create_sampling_client(base_model=BASE_MODEL).result(60)
    prompt = tinker.types.ModelInput.from_ints(TOKENS)

    def ask(**params: object) -> Any:
        sampling_params = tinker.types.SamplingParams(**params)  # type: ignore[arg-type]
        answer = sampler.sample(prompt, num_samples=1, sampling_params=sampling_params)
        return answer.result(60).sequences[0]

    greedy = ask(max_tokens=8, temperature=0.0, stop=[])
    assert greedy.stop_reason == "length"
    assert len(greedy.tokens) == len(greedy.logprobs or []) == 8
    assert ask(max_tokens=8, temperature=1.0, top_k=1, seed=3, stop=[]).tokens == greedy.tokens
    stopped = ask(max_tokens=8, temperature=0.0, stop=[greedy.tokens[2]])
    assert stopped.stop_reason == "stop"
    assert stopped.tokens == greedy.tokens[: greedy.tokens.index(greedy.tokens[2]) + 1]


def test_many_samples_in_flight_through_retrieve_futures(tinker: ModuleType, client: Any) -> None:
    sampler = client.create_sampling_client(base_model=BASE_MODEL).result(60)
    params = tinker.types.SamplingParams(max_tokens=4, temperature=1.0)
    futures = [
        sampler.sample(tinker.types.ModelInput.from_ints([number + 2]), 1, params)
        for number in range(40)
    ]
    answers = [future.result(120) for future in futures]
    ids = {sequence.sequence_id for answer in answers for sequence in answer.sequences}
    assert len(ids) == 40


def test_chosen_tokens_are_scored_at_every_prompt_position(
    tinker: ModuleType, client: Any, service: Service
) -> None:
    sampler = client.create_sampling_client(base_model=BASE_MODEL).result(60)
    prompt = tinker.types.ModelInput.from_ints(TOKENS)
    params = tinker.types.SamplingParams(max_tokens=1)
    wanted = np.array([[token, -1, 50] for token in TOKENS[1:]], np.int64)
    wanted[3] = [7, 8, 9]
    model = AutoModelForCausalLM.from_pretrained(service.data_dir / "tiny").eval()
    with torch.no_grad():
        reference = model(torch.tensor([TOKENS])).logits[0, :-1].log_softmax(-1).numpy()
    expected = np.take_along_axis(reference, np.maximum(wanted, 0), 1) * (wanted >= 0)

    def ask(targets: Any, **more: Any) -> Any:
        answer = sampler.sample(prompt, 1, params, target_prompt_logprobs=targets, **more)
        return answer.result(60)

    dense = ask(
        tinker.types.TensorData.from_numpy(wanted),
        include_prompt_logprobs=True,
        prompt_logprobs_last_n=2,
    )
    np.testing.assert_allclose(dense.target_prompt_logprobs.to_numpy(), expected, atol=1e-5)
    assert dense.prompt_logprobs[:6] == [None] * 6
    np.testing.assert_allclose(dense.prompt_logprobs[6:], reference[[5, 6], TOKENS[6:]], atol=1e-5)
    if tinker is official_sdk:  # our client has dense tensors only
        sparse = tinker.types.TensorData.from_torch_sparse(
            torch.from_numpy(np.where(np.arange(40) == 3, wanted[:, :1], -1)), pad_value=-1
        )
        found = ask(sparse).target_prompt_logprobs
        assert found.sparse_col_indices == sparse.sparse_col_indices
        np.testing.assert_allclose(found.to_numpy()[:, 3], expected[:, 0], atol=1e-5)
    for wrong in (wanted[1:], wanted + 1000):
        with pytest.raises(tinker.RequestFailedError, match="target_prompt_logprobs"):
            ask(tinker.types.TensorData.from_numpy(wrong))


def test_importance_sampling_equals_its_formula(tinker: ModuleType, client: Any) -> None:
    run = client.create_lora_training_client(BASE_MODEL, seed=1).result(60)
    [current] = logprobs(run.forward([datum(tinker)], "cross_entropy").result(60))
    advantages = [0.5, -1.0, 2.0, 0.0, 1.0, -0.25, 3.0]
    rl = tinker.types.Datum(
        model_input=tinker.types.ModelInput.from_ints(TOKENS[:-1]),
        loss_fn_inputs={
            "target_tokens": TOKENS[1:],
            "logprobs": current.tolist(),
            "advantages": advantages,
        },
    )
    output = run.forward_backward([rl], "importance_sampling").result(60)
    assert output.metrics["loss:sum"] == pytest.approx(-sum(advantages), abs=1e-4)


def test_forward_backward_custom_steps_like_cross_entropy(tinker: ModuleType, client: Any) -> None:
    def minus_sum(data: object, rows: list[object]) -> tuple[object, dict[str, float]]:
        return -sum(row.sum() for row in rows), {"custom:sum": 1.0}  # type: ignore[attr-defined]

    losses = []
    for custom in (True, False):
        run = client.create_lora_training_client(BASE_MODEL, seed=1).result(60)
        bare = tinker.types.Datum(
            model_input=tinker.types.ModelInput.from_ints(TOKENS[:-1]),
            loss_fn_inputs={"target_tokens": TOKENS[1:]},
        )
        if custom:
            run.forward_backward_custom([bare], minus_sum).result(60)  # type: ignore[arg-type]
        else:
            run.forward_backward([datum(tinker)], "cross_entropy").result(60)
        run.optim_step(adam(tinker)).result(60)
        losses.append(run.forward([datum(tinker)], "cross_entropy").result(60).metrics["loss:sum"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.parametrize(
    ("tokens", "weights", "loss_fn", "config", "field"),
    [
        ([5, VOCAB + 4, 7], None, "cross_entropy", None, "model_input"),
        ([5] * (CONTEXT + 2), None, "cross_entropy", None, "model_input"),
        (TOKENS, [1.0, 2.0], "cross_entropy", None, "weights"),
        (TOKENS, [float("nan")] * 7, "cross_entropy", None, "weights"),
        (TOKENS, None, "cross_entropi", None, "cross_entropi"),
        (TOKENS, None, "cross_entropy", {"clip": 1.0}, "clip"),
    ],
    ids=["token", "context", "length", "nan", "loss", "config"],
)
def test_bad_input_fails_by_name_and_leaves_nothing_behind(
    tinker: ModuleType,
    client: Any,
    tokens: list[int],
    weights: list[float] | None,
    loss_fn: str,
    config: dict[str, float] | None,
    field: str,
) -> None:
    run = client.create_lora_training_client(BASE_MODEL, seed=1).result(60)
    with pytest.raises(tinker.RequestFailedError, match=field):
        run.forward_backward([datum(tinker, tokens, weights)], loss_fn, config).result(60)
    assert run.optim_step(adam(tinker)).result(60).metrics["grad_norm"] == 0.0  # type: ignore[index]
    assert train(tinker, run, 1)[0] > 0


def test_a_bad_optimizer_setting_is_refused_by_name(tinker: ModuleType, client: Any) -> None:
    run = client.create_lora_training_client(BASE_MODEL, seed=1).result(60)
    with pytest.raises(tinker.RequestFailedError, match="eps"):
        run.optim_step(adam(tinker, 1e-3, eps=-1.0)).result(60)
    with pytest.raises(tinker.RequestFailedError, match="dimuon"):
        run.optim_step(tinker.types.DimuonParams(learning_rate=1e-3)).result(60)
    assert train(tinker, run, 1)[0] > 0


def test_an_unknown_base_model_is_refused_with_the_names_there_are(
    tinker: ModuleType,
    client: Any,
) -> None:
    with pytest.raises(tinker.APIStatusError, match=SECOND_MODEL):
        client.create_lora_training_client("no/such-model").result(60)
    with pytest.raises(tinker.APIStatusError, match=SECOND_MODEL):
        client.create_sampling_client(base_model="no/such-model").result(60)


def test_a_wrong_key_is_told_at_once(tinker: ModuleType, service: Service) -> None:
    wrong = tinker.ServiceClient(base_url=service.url, api_key="tml-wrong")
    with pytest.raises(tinker.AuthenticationError):
        wrong.create_lora_training_client(BASE_MODEL).result(60)


def test_checkpoint_names_are_unique_listed_and_deleted(tinker: ModuleType, client: Any) -> None:
    run = client.create_lora_training_client(BASE_MODEL, rank=2, seed=1).result(60)
    run.save_state("one").result(60)
    with pytest.raises(tinker.RequestFailedError, match="one"):
        run.save_state("one").result(60)
    run.save_state("one", overwrite=True).result(60)
    run.save_weights_for_sampler("two").result(60)
    with pytest.raises(tinker.RequestFailedError, match="name"):
        run.save_state("../three").result(60)
    rest = client.create_rest_client()
    listed = rest.list_checkpoints(run.model_id).result(60).checkpoints
    assert [one.checkpoint_id for one in listed] == ["sampler_weights/two", "weights/one"]
    assert all(one.size_bytes for one in listed)
    path = listed[1].tinker_path
    assert rest.get_weights_info_by_tinker_path(path).result(60).lora_rank == 2
    rest.delete_checkpoint_from_tinker_path(path).result(60)
    left = rest.list_checkpoints(run.model_id).result(60).checkpoints
    assert [one.checkpoint_id for one in left] == ["sampler_weights/two"]
    with pytest.raises(tinker.APIStatusError, match="one"):
        client.create_training_client_from_state(path).result(60)


def test_another_tenants_things_do_not_exist(
    tinker: ModuleType, client: Any, service: Service
) -> None:
    run = client.create_lora_training_client(BASE_MODEL, rank=2, seed=1).result(60)
    path = run.save_state("mine").result(60).path
    with tinker.ServiceClient(base_url=service.url, api_key=service.other_key) as other:
        rest = other.create_rest_client()
        assert rest.list_training_runs().result(60).training_runs == []
        with pytest.raises(tinker.NotFoundError):
            rest.get_training_run(run.model_id).result(60)
        with pytest.raises(tinker.NotFoundError):
            rest.delete_checkpoint_from_tinker_path(path).result(60)
        with pytest.raises(tinker.APIStatusError, match="mine"):
            other.create_training_client_from_state(path).result(60)
        with pytest.raises(tinker.NotFoundError):
            other.create_sampling_client(model_path=path).result(60)


def test_async_calls_from_a_running_loop(tinker: ModuleType, client: Any) -> None:
    async def flow() -> float:
        run = await client.create_lora_training_client_async(BASE_MODEL, seed=1)
        gradient = await run.forward_backward_async([datum(tinker)], "cross_entropy")
        step = await run.optim_step_async(adam(tinker))
        await step
        return (await gradient).metrics["loss:sum"]

    assert asyncio.run(flow()) > 0


def test_runs_of_the_key_are_listed_newest_first(tinker: ModuleType, client: Any) -> None:
    run = client.create_lora_training_client(
        BASE_MODEL, rank=2, seed=1, user_metadata={"purpose": "list"}
    ).result(60)
    rest = client.create_rest_client()
    newest = rest.list_training_runs(limit=1).result(60).training_runs[0]
    assert newest.training_run_id == run.model_id
    assert newest.user_metadata == {"purpose": "list"}
