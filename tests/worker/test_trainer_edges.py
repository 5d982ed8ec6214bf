"""Batches that nobody would send, until somebody does."""

import numpy as np
import pytest
import torch
from tinsmith_worker.engine import kernels
from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.base_model import BaseModel, load
from tinsmith_worker.engine.optimizer import AdamParams, RunState, optim_step
from tinsmith_worker.engine.packed import Pass
from tinsmith_worker.engine.training import Outcome, Trainer, Work, forward_backward
from tinsmith_worker.engine.values import Datum
from torch import Tensor

from tests.worker.tiny_models import VOCAB, save


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load(str(save("llama", tmp_path_factory.mktemp("llama"))), name="tiny")


def run_of(model: BaseModel, seed: int = 1, rank: int = 4, **switches: bool) -> RunState:
    run = RunState(Adapter.create(model, rank=rank, seed=seed, **switches))
    generator = torch.Generator().manual_seed(seed)
    run.adapter.row += 0.05 * torch.randn(run.adapter.row.shape, generator=generator)
    run.adapter.changed()
    return run


def datum(tokens: list[int], weights: float | list[float] | None = 1.0, columns: int = 0) -> Datum:
    """Predicts each next token; with columns, others beside it."""
    random = np.random.default_rng(len(tokens))
    inner = np.array(tokens[:-1], np.int32)
    targets = np.array(tokens[1:])
    if columns:
        others = random.integers(2, VOCAB, (targets.size, columns - 1))
        targets = np.concatenate([targets[:, None], others], 1)
    weight = (
        random.normal(size=targets.shape) if weights is None else np.zeros(targets.shape) + weights
    )
    return Datum(inner, {"target_tokens": targets, "weights": weight.astype(np.float32)})


def some(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(2, VOCAB, length + 1).tolist()


def work(run: RunState, data: list[Datum], loss_fn: str = "cross_entropy") -> Work:
    return Work(run=run, data=data, loss_fn=loss_fn, loss_fn_config={})


def learn(
    model: BaseModel, run: RunState, data: list[Datum], tokens: int = 4096, **how: bool
) -> Outcome:
    [outcome] = forward_backward(model, [work(run, data)], max_pass_tokens=tokens, **how)
    assert outcome.error is None
    return outcome


def gradient(run: RunState) -> Tensor:
    assert run.gradient is not None
    return run.gradient


def close(found: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max())
    assert scale > 0
    torch.testing.assert_close(found, expected, atol=1e-5 * scale, rtol=1e-4)


def sum_of_each_alone(model: BaseModel, data: list[Datum], **switches: bool) -> Tensor:
    total = torch.zeros(())
    for one in data:
        run = run_of(model, **switches)
        learn(model, run, [one])
        total = total + gradient(run)
    return total


@pytest.mark.parametrize("switches", [{}, {"train_attn": False, "train_mlp": False}])
def test_weights_of_zero_lose_nothing_and_teach_nothing(
    model: BaseModel, switches: dict[str, bool]
) -> None:
    run = run_of(model, **switches)
    outcome = learn(model, run, [datum(some(1, 20), 0.0), datum(some(2, 5), 0.0, columns=3)])
    assert outcome.metrics["loss:sum"] == 0
    assert (gradient(run) == 0).all()
    scored = learn(model, run_of(model, **switches), [datum(some(1, 20))])
    np.testing.assert_array_equal(outcome.logprobs[0], scored.logprobs[0])


def test_negative_weights_teach_the_opposite(model: BaseModel) -> None:
    for_it, against = run_of(model), run_of(model)
    liked = learn(model, for_it, [datum(some(1, 20), 0.5)])
    disliked = learn(model, against, [datum(some(1, 20), -0.5)])
    assert disliked.metrics["loss:sum"] == -liked.metrics["loss:sum"]
    close(gradient(against), -gradient(for_it))


@pytest.mark.parametrize("tokens", [4096, 16])
def test_one_target_and_several_in_one_request(model: BaseModel, tokens: int) -> None:
    data = [
        datum(some(1, 9), None),
        datum(some(2, 14), None, columns=3),
        datum(some(3, 1), None, columns=1),
        datum(some(4, 5), None),
        datum(some(5, 30), None, columns=2),
    ]
    run = run_of(model)
    outcome = learn(model, run, data, tokens)
    assert [one.shape for one in outcome.logprobs] == [one.inputs["weights"].shape for one in data]
    expected = sum(
        -float((one.inputs["weights"] * found).sum())
        for one, found in zip(data, outcome.logprobs, strict=True)
    )
    assert outcome.metrics["loss:sum"] == pytest.approx(expected, rel=1e-5)
    close(gradient(run), sum_of_each_alone(model, data))
    plain = learn(model, run_of(model), [datum(some(2, 14))])
    np.testing.assert_array_equal(outcome.logprobs[1][:, 0], plain.logprobs[0])


@pytest.mark.parametrize("tokens", [4096, 64])
def test_the_same_datum_several_times_counts_each_time(model: BaseModel, tokens: int) -> None:
    one = datum(some(1, 40), None)
    run = run_of(model)
    outcome = learn(model, run, [one, datum(some(2, 7), None), one, one], tokens)
    np.testing.assert_allclose(outcome.logprobs[0], outcome.logprobs[3], atol=1e-6)
    close(gradient(run), sum_of_each_alone(model, [one, one, one, datum(some(2, 7), None)]))


def test_datums_of_one_token(model: BaseModel) -> None:
    data = [datum(some(seed, 1), None) for seed in range(5)] + [datum(some(9, 1), None, columns=4)]
    run = run_of(model)
    outcome = learn(model, run, data)
    assert [one.size for one in outcome.logprobs] == [1, 1, 1, 1, 1, 4]
    close(gradient(run), sum_of_each_alone(model, data))


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("longer", [31, 80])
def test_a_datum_that_is_the_beginning_of_another(
    model: BaseModel, order: int, longer: int
) -> None:
    tokens = some(1, longer)
    data = [datum(tokens[:31], None), datum(tokens, None)][::order]
    shared, apart = run_of(model), run_of(model)
    found = learn(model, shared, data)
    alone = learn(model, apart, data, share_prompts=False)
    for left, right in zip(found.logprobs, alone.logprobs, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)
    close(gradient(shared), gradient(apart))


@pytest.mark.parametrize("place", ["attn", "mlp", "unembed"])
def test_adapters_on_one_part_only_beside_whole_ones(model: BaseModel, place: str) -> None:
    switches = {f"train_{one}": one == place for one in ("attn", "mlp", "unembed")}
    data = [datum(some(1, 20), None), datum(some(2, 33), None)]
    mixed, alone = run_of(model, 1, **switches), run_of(model, 1, **switches)
    whole = [run_of(model, 2, rank=7), run_of(model, 3, rank=1)]
    works = [work(whole[0], [datum(some(3, 9))]), work(mixed, data), work(whole[1], data)]
    outcomes = forward_backward(model, works, max_pass_tokens=4096)
    assert [one.error for one in outcomes] == [None] * 3
    learn(model, alone, data)
    assert torch.equal(gradient(mixed), gradient(alone))
    assert gradient(mixed).abs().max() > 0


# A run's requests


def test_what_is_not_finite_fails_itself_and_not_the_next_request_of_the_run(
    model: BaseModel,
) -> None:
    run, expected = run_of(model), run_of(model)
    fine, bad = datum(some(1, 20), None), datum(some(2, 20), 3e38)
    works = [work(run, [fine]), work(run, [fine, bad]), work(run, [fine])]
    outcomes = forward_backward(model, works, max_pass_tokens=4096)
    assert [one.error is None for one in outcomes] == [True, False, True]
    learn(model, expected, [fine])
    learn(model, expected, [fine])
    assert torch.equal(gradient(run), gradient(expected))


def test_a_run_that_has_diverged_is_told_so_beside_one_that_has_not(model: BaseModel) -> None:
    sick, well, expected = run_of(model, 2), run_of(model), run_of(model)
    sick.adapter.row[5] = float("nan")
    sick.adapter.changed()
    data = [datum(some(seed, 40), None) for seed in range(3)]
    failed, fine = forward_backward(
        model, [work(sick, data), work(well, data)], max_pass_tokens=4096
    )
    assert failed.error is not None
    assert "not finite" in failed.error
    assert not sick.has_gradient
    assert fine.error is None
    learn(model, expected, data)
    assert torch.equal(gradient(well), gradient(expected))


def test_the_requests_of_a_run_are_settled_in_order(model: BaseModel) -> None:
    trainer = Trainer(model, max_pass_tokens=40)
    run, other = run_of(model), run_of(model, 2)
    long = work(run, [datum(some(seed, 35)) for seed in range(5)])
    works = [long, work(run, [datum(some(9, 3))]), work(other, [datum(some(8, 3))])]
    for one in works:
        trainer.add(one)
    trainer.refuse(refused := work(run, []), "no")
    order = []
    while trainer.busy:
        order += [id(settled) for settled, _ in trainer.step()]
    assert order == [id(works[2]), id(works[0]), id(works[1]), id(refused)]


@pytest.mark.parametrize("passes", [0, 1, 2])
def test_a_run_is_abandoned_in_the_middle_of_its_request(model: BaseModel, passes: int) -> None:
    trainer = Trainer(model, max_pass_tokens=40)
    leaves, stays, expected = run_of(model), run_of(model, 2), run_of(model, 2)
    data = [datum(some(seed, 35), None) for seed in range(4)]
    trainer.add(work(leaves, data))
    trainer.add(work(leaves, data[:1]))
    trainer.add(kept := work(stays, data))
    for _ in range(passes):
        assert trainer.step() == []
    trainer.abandon(leaves)
    settled = []
    while trainer.busy:
        settled += trainer.step()
    assert [one for one, _ in settled] == [kept]
    assert not leaves.has_gradient
    learn(model, expected, data, 40)
    assert torch.equal(gradient(stays), gradient(expected))
    assert not trainer.busy


def test_one_that_only_looks_does_not_keep_its_company_from_learning(model: BaseModel) -> None:
    data = [datum(some(1, 20), None)]
    run, expected = run_of(model), run_of(model)
    looks = Work(
        run=run_of(model, 2),
        data=data,
        loss_fn="cross_entropy",
        loss_fn_config={},
        forward_only=True,
    )
    forward_backward(model, [looks, work(run, data)], max_pass_tokens=4096)
    learn(model, expected, data)
    assert torch.equal(gradient(run), gradient(expected))
    assert not looks.run.has_gradient


def test_what_was_learnt_before_memory_ran_out_is_not_learnt_twice(
    model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [datum(some(seed, 35), None) for seed in range(3)]
    run, expected = run_of(model), run_of(model)
    learn(model, expected, data, 40)
    real, calls = model.hidden, []

    def short_of_memory(current: Pass) -> Tensor:
        calls.append(current)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")
        return real(current)

    monkeypatch.setattr(model, "hidden", short_of_memory)
    learn(model, run, data, 40)
    assert len(calls) == 6
    assert torch.equal(gradient(run), gradient(expected))


def test_a_norm_below_the_limit_is_not_scaled_up(model: BaseModel) -> None:
    rows = []
    for largest in (0.0, 1e6):
        run = run_of(model)
        learn(model, run, [datum(some(1, 20), None)])
        optim_step(run, AdamParams(learning_rate=1e-2, eps=1.0, grad_clip_norm=largest))
        rows.append(run.adapter.row)
    assert torch.equal(rows[0], rows[1])


@pytest.mark.parametrize("family", ["gemma3", "llama"])
@pytest.mark.parametrize("prompt", [100, 127, 128, 135])
def test_a_shared_prompt_that_ends_near_the_end_of_a_block(
    family: str, prompt: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_group(load(str(save(family, tmp_path_factory.mktemp(family))), name=family), prompt)


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "torch"])
def test_a_padded_query_beyond_the_last_key_sees_something(
    compiled: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Else its row of the softmax is nan, and so are the gradients of its sequence's keys."""
    if not compiled:
        monkeypatch.setattr(kernels, "_library", lambda: None)
    check_group(load(str(save("gemma3", tmp_path_factory.mktemp("gemma3"))), name="tiny"), 120)


def check_group(model: BaseModel, prompt: int) -> None:
    start = some(1, prompt)
    data = [datum([*start, *some(seed, 3)], None) for seed in range(3)]
    shared, apart = run_of(model), run_of(model)
    learn(model, shared, data)
    learn(model, apart, data, share_prompts=False)
    close(gradient(shared), gradient(apart))
