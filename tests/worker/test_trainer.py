"""What shares a pass, what is cut, and in which order it is settled."""

import numpy as np
import pytest
import torch
from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.base_model import BaseModel, load
from tinsmith_worker.engine.budget import measure
from tinsmith_worker.engine.optimizer import AdamParams, RunState, optim_step, optim_steps
from tinsmith_worker.engine.training import Trainer, Work, forward_backward
from tinsmith_worker.engine.values import Datum
from torch import Tensor

from tests.worker.tiny_models import VOCAB, save


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load(str(save("qwen3", tmp_path_factory.mktemp("qwen3"))), name="tiny")


def run_of(model: BaseModel, seed: int = 1, **switches: bool) -> RunState:
    run = RunState(Adapter.create(model, rank=4, seed=seed, **switches))
    run.adapter.row += 0.05 * torch.randn(
        run.adapter.row.shape, generator=torch.Generator().manual_seed(seed)
    )
    run.adapter.changed()
    return run


def rl_datum(seed: int, prompt: list[int], length: int) -> Datum:
    random = np.random.default_rng(seed)
    tokens = np.array([*prompt, *random.integers(2, VOCAB, length + 1)])
    count = len(tokens) - 1
    advantages = random.normal(size=count).astype(np.float32)
    advantages[: len(prompt) - 1] = 0
    inputs = {
        "target_tokens": tokens[1:],
        "logprobs": random.normal(-4.5, 0.3, count).astype(np.float32),
        "advantages": advantages,
    }
    return Datum(tokens[:-1].astype(np.int32), inputs)


def work(run: RunState, data: list[Datum], loss_fn: str = "ppo", **more: bool) -> Work:
    return Work(run=run, data=data, loss_fn=loss_fn, loss_fn_config={}, **more)


def gradient_of(model: BaseModel, data: list[Datum], loss_fn: str, **how: object) -> Tensor:
    run = run_of(model)
    options: dict[str, object] = {"max_pass_tokens": 4096} | how
    [outcome] = forward_backward(model, [work(run, data, loss_fn)], **options)  # type: ignore[arg-type]
    assert outcome.error is None
    assert run.gradient is not None
    return run.gradient


PROMPT = list(range(5, 45))
GROUP = [rl_datum(seed, PROMPT, 5 + seed) for seed in range(6)]
LOSSES = ["importance_sampling", "ppo", "cispo", "dro", "gspo"]


@pytest.mark.parametrize("loss_fn", LOSSES)
def test_a_shared_prompt_is_computed_once_and_changes_nothing(
    model: BaseModel, loss_fn: str
) -> None:
    stranger = rl_datum(9, [7, 7], 20)
    data = [GROUP[0], stranger, *GROUP[1:]]
    shared = gradient_of(model, data, loss_fn)
    alone = gradient_of(model, data, loss_fn, share_prompts=False)
    torch.testing.assert_close(shared, alone, atol=1e-5 * float(alone.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("loss_fn", LOSSES)
def test_cutting_a_request_changes_nothing(model: BaseModel, loss_fn: str) -> None:
    whole = gradient_of(model, GROUP, loss_fn)
    cut = gradient_of(model, GROUP, loss_fn, max_pass_tokens=64)
    torch.testing.assert_close(cut, whole, atol=1e-5 * float(whole.abs().max()), rtol=1e-4)


def test_a_shared_prompt_that_is_weighted_learns_from_every_member(model: BaseModel) -> None:
    data = [
        Datum(
            one.tokens,
            {
                "target_tokens": one.inputs["target_tokens"],
                "weights": np.ones(one.tokens.size, np.float32),
            },
        )
        for one in GROUP
    ]
    shared = gradient_of(model, data, "cross_entropy")
    alone = gradient_of(model, data, "cross_entropy", share_prompts=False)
    torch.testing.assert_close(shared, alone, atol=1e-5 * float(alone.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("loss_fn", LOSSES)
def test_company_changes_not_one_bit_of_logprobs_or_gradient(
    model: BaseModel, loss_fn: str
) -> None:
    alone, mixed, other = run_of(model), run_of(model), run_of(model, 2)
    [expected] = forward_backward(model, [work(alone, GROUP, loss_fn)], max_pass_tokens=512)
    company = [
        work(other, [rl_datum(30 + n, [3] * n, 11 * n) for n in range(1, 4)], name)
        for name in ("gspo", "dro")
    ]
    works = [company[0], work(mixed, GROUP, loss_fn), company[1]]
    found = forward_backward(model, works, max_pass_tokens=512)
    for left, right in zip(found[1].logprobs, expected.logprobs, strict=True):
        assert np.array_equal(left, right)
    assert mixed.gradient is not None
    assert alone.gradient is not None
    assert torch.equal(mixed.gradient, alone.gradient)


def test_the_chunks_of_a_call_share_a_pass_and_are_what_they_are_alone(model: BaseModel) -> None:
    together, apart = run_of(model), run_of(model)
    trainer = Trainer(model, max_pass_tokens=4096)
    chunks = [GROUP[:2], GROUP[2:4], GROUP[4:]]
    for chunk in chunks:
        trainer.add(work(together, chunk))
    assert len(trainer.step()) == 3
    for chunk in chunks:
        forward_backward(model, [work(apart, chunk)], max_pass_tokens=4096)
    assert together.gradient is not None
    assert apart.gradient is not None
    assert torch.equal(together.gradient, apart.gradient)


def test_one_that_arrives_in_the_middle_does_not_wait_for_the_long_one(model: BaseModel) -> None:
    trainer = Trainer(model, max_pass_tokens=64)
    long = work(run_of(model), [rl_datum(seed, [seed + 2] * 5, 50) for seed in range(20)])
    trainer.add(long)
    assert trainer.step() == []
    short = work(run_of(model, 2), [GROUP[0]])
    trainer.add(short)
    passes = 1
    while not (settled := trainer.step()):
        passes += 1
    assert settled[0][0] is short
    assert passes <= 2


def test_a_run_is_answered_in_order_even_when_the_later_request_is_refused(
    model: BaseModel,
) -> None:
    trainer = Trainer(model, max_pass_tokens=64)
    run = run_of(model)
    first = work(run, [rl_datum(seed, [2, 3], 50) for seed in range(4)])
    trainer.add(first)
    trainer.add(work(run, [GROUP[0]], "no_such_loss"))
    order = []
    while trainer.busy:
        order += [settled.loss_fn for settled, _ in trainer.step()]
    assert order == ["ppo", "no_such_loss"]


def test_steps_together_are_steps_apart(model: BaseModel) -> None:
    settings = [AdamParams(learning_rate=1e-2, grad_clip_norm=0.1), AdamParams(weight_decay=0.1)]
    groups = []
    for together in (True, False):
        runs = [run_of(model, seed) for seed in range(4)]
        forward_backward(model, [work(one, GROUP[:2]) for one in runs], max_pass_tokens=512)
        steps = [(one, settings[index % 2]) for index, one in enumerate(runs)]
        if together:
            optim_steps(steps)
        else:
            for one, params in steps:
                optim_step(one, params)
        groups.append([one.adapter.row for one in runs])
    for left, right in zip(*groups, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_running_out_of_memory_splits_and_repeats(
    model: BaseModel, failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = gradient_of(model, GROUP, "ppo")
    real, left = model.hidden, [failures]

    def short_of_memory(current: object) -> Tensor:
        hidden = real(current)  # type: ignore[arg-type]
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")
        return hidden

    monkeypatch.setattr(model, "hidden", short_of_memory)
    runs = [run_of(model), run_of(model, 2)]
    works = [work(one, GROUP) for one in runs]
    outcomes = forward_backward(model, works, max_pass_tokens=4096)
    assert [one.error for one in outcomes] == [None, None]
    assert runs[0].gradient is not None
    torch.testing.assert_close(
        runs[0].gradient, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4
    )


def test_only_the_datum_that_cannot_fit_fails_and_says_how_long_it_is(
    model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = model.hidden

    def room_for_sixty(current: object) -> Tensor:
        if len(current.tokens) > 60:  # type: ignore[attr-defined]
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")
        return real(current)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "hidden", room_for_sixty)
    runs = [run_of(model), run_of(model, 2)]
    works = [work(runs[0], [GROUP[0], rl_datum(1, [5, 6], 90)]), work(runs[1], GROUP)]
    failed, fine = forward_backward(model, works, max_pass_tokens=4096)
    assert failed.error is not None
    assert failed.error.startswith("data[1]: its 92 tokens need more memory")
    assert not runs[0].has_gradient
    assert fine.error is None


@pytest.mark.parametrize(
    "switches", [{"train_attn": False}, {"train_attn": False, "train_mlp": False}]
)
def test_checkpointing_changes_nothing(
    model: BaseModel, switches: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    for limit in (4096, 8):  # every datum is longer than 8 tokens, and so is checkpointed
        run = run_of(model, 1, **switches)
        monkeypatch.setattr(model, "memory_tokens", limit)
        forward_backward(model, [work(run, GROUP)], max_pass_tokens=4096, share_prompts=False)
        rows.append(run.gradient)
    assert rows[0] is not None
    torch.testing.assert_close(rows[1], rows[0], atol=1e-5 * float(rows[0].abs().max()), rtol=1e-4)


def test_the_divergence_from_the_sampler_is_told_with_the_loss(model: BaseModel) -> None:
    run = run_of(model)
    [outcome] = forward_backward(model, [work(run, GROUP, forward_only=True)], max_pass_tokens=512)
    k3 = []
    for one, logprobs in zip(GROUP, outcome.logprobs, strict=True):
        log_ratio = logprobs - one.inputs["logprobs"]
        k3.append((np.exp(log_ratio) - 1 - log_ratio)[one.inputs["advantages"] != 0])
    expected = float(np.concatenate(k3).mean())
    assert outcome.metrics["sampler_kl:mean"] == pytest.approx(expected, rel=1e-5)
    [plain] = forward_backward(
        model, [work(run, [cross_entropy_datum()], "cross_entropy")], max_pass_tokens=512
    )
    assert "sampler_kl:mean" not in plain.metrics


def cross_entropy_datum() -> Datum:
    inputs = {"target_tokens": np.array([3, 4]), "weights": np.ones(2, np.float32)}
    return Datum(np.array([2, 3], np.int32), inputs)


def test_what_a_pass_keeps_is_measured(model: BaseModel) -> None:
    budget = measure(model, kv_cache_gib=0.001, shares=1)
    hidden, layers, heads, kv, inner = 32, 2, 4, 2, 64
    row = 4 * (2 * hidden + hidden + 2 * kv * 8 + 2 * inner + inner)  # norms, qkv, gates: at least
    assert budget.bytes_per_token > layers * row + layers * heads * 4 * 1024
    assert budget.bytes_per_token < 10 * layers * row + layers * heads * 4 * 1024
    assert budget.memory_tokens > 10_000
    assert budget.max_blocks == 32  # 0.001 GiB of 128 positions x 256 bytes
