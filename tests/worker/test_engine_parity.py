"""The engine against independent implementations: transformers, peft, torch's own AdamW."""

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from tinsmith_worker import checkpoint_files
from tinsmith_worker.engine import kernels
from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.base_model import load as load_model
from tinsmith_worker.engine.kv_pool import KVPool
from tinsmith_worker.engine.optimizer import AdamParams, RunState, optim_step
from tinsmith_worker.engine.packed import Segment
from tinsmith_worker.engine.sampler import Sampler
from tinsmith_worker.engine.training import Work, forward_backward
from tinsmith_worker.engine.values import Datum, SampleRequest
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.worker import tiny_models
from tests.worker.tiny_models import VOCAB

torch.set_num_threads(1)
ADAM = AdamParams(learning_rate=1e-2, weight_decay=0.1, grad_clip_norm=1.0)


@pytest.fixture(params=list(tiny_models.FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def load(family: str, tmp_path: Path) -> tuple[BaseModel, Path]:
    folder = tiny_models.save(family, tmp_path / family)
    return load_model(str(folder), name=family), folder


def datum(seed: int, length: int, weights: float | None = 1.0) -> Datum:
    random = np.random.default_rng(seed)
    tokens = random.integers(2, VOCAB, length + 1)
    weight = random.normal(size=length) if weights is None else np.full(length, weights)
    inputs = {"target_tokens": tokens[1:], "weights": weight.astype(np.float32)}
    return Datum(tokens[:-1].astype(np.int32), inputs)


def cross_entropy(run: RunState, data: list[Datum], forward_only: bool = False) -> Work:
    return Work(
        run=run,
        data=data,
        loss_fn="cross_entropy",
        loss_fn_config={},
        forward_only=forward_only,
    )


def train(model: BaseModel, run: RunState, data: list[Datum], steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        [outcome] = forward_backward(model, [cross_entropy(run, data)], max_pass_tokens=64)
        assert outcome.error is None
        losses.append(outcome.metrics["loss:sum"])
        optim_step(run, ADAM)
    return losses


def weights(run: RunState) -> list[Tensor]:
    return [parameter.clone() for parameter in run.adapter.parameters().values()]


def gradients(run: RunState) -> list[Tensor]:
    assert run.gradient is not None
    return list(run.adapter.layout.tensors(run.gradient).values())


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def peft_twin(folder: Path, run: RunState, out: Path, name: str) -> peft.PeftModel:
    """The run's adapter opened by peft from the files that we export."""
    out.mkdir()
    for file, data in checkpoint_files.pack(run, name, optimizer=False).items():
        (out / file).write_bytes(data)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(base, out, is_trainable=True)


def peft_logprobs(twin: torch.nn.Module, one: Datum) -> Tensor:
    logits = twin(torch.from_numpy(one.tokens.astype(np.int64))[None]).logits[0]
    targets = torch.from_numpy(one.inputs["target_tokens"])
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


def shaken(model: BaseModel, seed: int = 1, rank: int = 4) -> RunState:
    """A run whose B is not zero, so that every part of the adapter matters."""
    run = RunState(Adapter.create(model, rank=rank, seed=seed))
    generator = torch.Generator().manual_seed(seed)
    for parameter in run.adapter.parameters().values():
        parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    run.adapter.changed()
    return run


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("how", ["compiled", "torch", "generic"])
def test_five_steps_are_those_of_peft_and_torch(
    family: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "torch":
        monkeypatch.setattr(kernels, "_library", lambda: None)
    folder = tiny_models.save(family, tmp_path / family)
    model = load_model(str(folder), name=family, fused=how != "generic")
    assert model.engine == ("generic" if how == "generic" else "fused")
    run = shaken(model)
    twin = peft_twin(folder, run, tmp_path / "peft", family)
    named = {n.replace(".default", ""): p for n, p in twin.named_parameters() if p.requires_grad}
    assert named.keys() == run.adapter.parameters().keys()
    optimizer = torch.optim.AdamW(
        named.values(), lr=1e-2, betas=(0.9, 0.95), eps=1e-12, weight_decay=0.1
    )
    data = [datum(1, 20, None), datum(2, 7, None), datum(3, 33, None)]
    for _ in range(5):
        expected = [peft_logprobs(twin, one) for one in data]
        loss = -sum(
            (torch.from_numpy(one.inputs["weights"]) * row).sum()
            for one, row in zip(data, expected, strict=True)
        )
        optimizer.zero_grad()
        loss.backward()
        [outcome] = forward_backward(model, [cross_entropy(run, data)], max_pass_tokens=40)
        assert outcome.metrics["loss:sum"] == pytest.approx(float(loss), rel=1e-5, abs=1e-4)
        for ours, theirs in zip(outcome.logprobs, expected, strict=True):
            np.testing.assert_allclose(ours, theirs.detach(), atol=1e-5, rtol=1e-6)
        for name, ours in zip(run.adapter.parameters(), gradients(run), strict=True):
            theirs = named[name]
            assert theirs.grad is not None
            scale = max(1.0, float(theirs.grad.abs().max()))
            torch.testing.assert_close(ours, theirs.grad, atol=1e-5 * scale, rtol=1e-4)
        norm = torch.nn.utils.clip_grad_norm_(named.values(), 1.0)
        optimizer.step()
        metrics = optim_step(run, ADAM)
        assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    for name, parameter in run.adapter.parameters().items():
        torch.testing.assert_close(parameter, named[name], atol=1e-4, rtol=1e-4)


def test_a_packed_pass_is_each_sequence_alone(family: str, tmp_path: Path) -> None:
    model, folder = load(family, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    sequences = [datum(seed, length).tokens.tolist() for seed, length in ((1, 9), (2, 30), (3, 1))]
    with torch.no_grad():
        current = model.new_pass([Segment(tokens) for tokens in sequences])
        logits = model.logits(model.hidden(current), ())
        for tokens, rows in zip(sequences, current.rows, strict=True):
            expected = plain(torch.tensor([tokens])).logits[0]
            torch.testing.assert_close(logits[rows], expected, atol=2e-5, rtol=1e-4)


def test_a_cache_changes_nothing(family: str, tmp_path: Path) -> None:
    model, _ = load(family, tmp_path)
    tokens = datum(5, 30).tokens.tolist()
    with torch.no_grad():
        whole = model.hidden(model.new_pass([Segment(tokens)]))[: len(tokens)]
        cache, pieces = KVPool(8).cache(), []
        for start, end in ((0, 11), (11, 12), (12, 13), (13, 30)):
            part = model.new_pass([Segment(tokens[start:end], None, cache)])
            pieces.append(model.hidden(part)[: end - start])
    torch.testing.assert_close(torch.cat(pieces), whole, atol=1e-5, rtol=1e-4)


def test_four_tenants_in_one_pass_are_four_single_passes(family: str, tmp_path: Path) -> None:
    model, _ = load(family, tmp_path)
    data = [[datum(10 + n, 5 + 9 * n), datum(20 + n, 12)] for n in range(4)]
    together = [shaken(model, seed=n, rank=2 + n) for n in range(4)]
    alone = [shaken(model, seed=n, rank=2 + n) for n in range(4)]
    works = [cross_entropy(run, part) for run, part in zip(together, data, strict=True)]
    mixed = forward_backward(model, works, max_pass_tokens=2048)
    for run, other, part, outcome in zip(together, alone, data, mixed, strict=True):
        [single] = forward_backward(model, [cross_entropy(other, part)], max_pass_tokens=2048)
        for ours, theirs in zip(outcome.logprobs, single.logprobs, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        for ours, theirs in zip(gradients(run), gradients(other), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_neighbour_changes_not_one_bit(name: str, tmp_path: Path) -> None:
    model, _ = load(name, tmp_path)

    def steps(company: bool) -> list[Tensor]:
        run, wild = shaken(model, 1), shaken(model, 2, rank=8)
        for step in range(4):
            works = [cross_entropy(run, [datum(step, 9), datum(50 + step, 23)])]
            if company:
                poison = datum(step, 17)
                poison.inputs["weights"][3] = np.inf if step == 2 else 1.0
                works.insert(0, cross_entropy(wild, [poison]))
                works.append(cross_entropy(shaken(model, 3), [datum(step, 41)]))
            outcomes = forward_backward(model, works, max_pass_tokens=2048)
            if company:
                assert (outcomes[0].error is not None) == (step == 2)
                optim_step(
                    wild, AdamParams(learning_rate=1.0, weight_decay=0.5, grad_clip_norm=0.01)
                )
            optim_step(run, ADAM)
        return weights(run)

    assert same(steps(False), steps(True))


def test_a_request_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    model, _ = load("llama", tmp_path)
    run = shaken(model)
    # Finite input, infinite loss, in the second micro-batch: the first one's gradient is dropped too.
    heavy = datum(2, 30, 3e38)
    [outcome] = forward_backward(
        model, [cross_entropy(run, [datum(1, 30), heavy])], max_pass_tokens=32
    )
    assert outcome.error is not None
    assert "not finite" in outcome.error
    assert not run.has_gradient


def test_two_requests_add_up_and_forward_adds_nothing(tmp_path: Path) -> None:
    model, _ = load("llama", tmp_path)
    first, second = datum(1, 12), datum(2, 20)
    whole, parts = shaken(model), shaken(model)
    forward_backward(model, [cross_entropy(whole, [first, second])], max_pass_tokens=2048)
    forward_backward(model, [cross_entropy(parts, [first])], max_pass_tokens=2048)
    forward_backward(model, [cross_entropy(parts, [second], True)], max_pass_tokens=2048)
    forward_backward(model, [cross_entropy(parts, [second])], max_pass_tokens=2048)
    for left, right in zip(gradients(whole), gradients(parts), strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)


def test_resuming_with_optimizer_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model, _ = load("llama", tmp_path)
    run = RunState(Adapter.create(model, rank=4, seed=7))
    data = [datum(1, 20)]
    train(model, run, data, 3)
    files = checkpoint_files.pack(run, "llama", optimizer=True)
    expected = train(model, run, data, 3)
    resumed = checkpoint_files.unpack(model, files)
    assert train(model, resumed, data, 3) == expected
    assert same(weights(resumed), weights(run))
    fresh = checkpoint_files.unpack(model, files, fresh="adamw")
    assert train(model, fresh, data, 3) != expected


def test_a_new_adapter_is_the_base_model_and_its_first_step_moves_only_b(tmp_path: Path) -> None:
    model, _ = load("llama", tmp_path)
    run = RunState(Adapter.create(model, rank=4, seed=7))
    before = dict(zip(run.adapter.parameters(), weights(run), strict=True))
    assert all((before[name] == 0).all() for name in before if "lora_B" in name)
    forward_backward(model, [cross_entropy(run, [datum(1, 20)])], max_pass_tokens=64)
    gradient = dict(zip(before, gradients(run), strict=True))
    optim_step(run, AdamParams(learning_rate=1e-3))
    for name, parameter in run.adapter.parameters().items():
        if "lora_A" in name:
            assert torch.equal(parameter, before[name])
        else:
            expected = -1e-3 * gradient[name].sign()
            torch.testing.assert_close(parameter.detach(), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("place", ["attn", "mlp", "unembed"])
def test_each_switch_selects_exactly_its_modules(place: str, tmp_path: Path) -> None:
    model, _ = load("llama", tmp_path)
    switches = {f"train_{one}": one == place for one in ("attn", "mlp", "unembed")}
    names = Adapter.create(model, rank=2, seed=0, **switches).parameters()
    leaves = {name.split(".")[-3] for name in names}
    assert (
        leaves
        == {
            "attn": {"q_proj", "k_proj", "v_proj", "o_proj"},
            "mlp": {"gate_proj", "up_proj", "down_proj"},
            "unembed": {"lm_head"},
        }[place]
    )


def request(name: str, prompt: list[int], **more: object) -> SampleRequest:
    defaults: dict[str, object] = {
        "adapter": None,
        "num_samples": 1,
        "max_tokens": 12,
        "temperature": 1.0,
        "top_k": -1,
        "top_p": 1.0,
        "seed": 3,
        "stop": [],
    }
    return SampleRequest(request_id=name, prompt=prompt, **(defaults | more))  # type: ignore[arg-type]


def sample(model: BaseModel, *requests: SampleRequest) -> dict[str, list[list[int]]]:
    sampler = Sampler(model, max_slots=8, max_pass_tokens=64)
    for one in requests:
        sampler.add(one)
    found = {}
    while sampler.busy:
        for finished in sampler.step():
            found[finished.request_id] = [sequence.tokens for sequence in finished.sequences]
    return found


def test_greedy_tokens_are_those_of_generate(family: str, tmp_path: Path) -> None:
    model, folder = load(family, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = datum(4, 9).tokens.tolist()
    expected = plain.generate(
        torch.tensor([prompt]),
        max_new_tokens=12,
        min_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
    )
    greedy = sample(model, request("a", prompt, temperature=0.0))
    assert greedy["a"][0] == expected[0, len(prompt) :].tolist()
    for same_as_greedy in ({"top_k": 1}, {"top_p": 1e-6}):
        assert sample(model, request("a", prompt, **same_as_greedy)) == greedy


def test_company_does_not_change_a_sample(tmp_path: Path) -> None:
    model, _ = load("llama", tmp_path)
    adapter = shaken(model).adapter
    mine = request("mine", datum(1, 9).tokens.tolist(), num_samples=4, adapter=adapter)
    others = [
        request(f"o{n}", datum(n, 5 + 7 * n).tokens.tolist(), max_tokens=3 + n, num_samples=n)
        for n in range(1, 4)
    ]
    alone = sample(model, mine)["mine"]
    assert sample(model, *others[:2], mine, *others[2:])["mine"] == alone
    assert len({tuple(tokens) for tokens in alone}) == 4


def test_sampled_logprobs_are_the_trainers(family: str, tmp_path: Path) -> None:
    model, _ = load(family, tmp_path)
    run = shaken(model)
    prompt = datum(1, 9).tokens.tolist()
    sampler = Sampler(model, max_slots=8, max_pass_tokens=64)
    sampler.add(request("a", prompt, adapter=run.adapter, prompt_logprobs=True))
    finished = []
    while sampler.busy:
        finished += sampler.step()
    [sequence] = finished[0].sequences
    full = np.array(prompt + sequence.tokens)
    scored = Datum(
        full[:-1].astype(np.int32),
        {"target_tokens": full[1:], "weights": np.ones(len(full) - 1, np.float32)},
    )
    [outcome] = forward_backward(model, [cross_entropy(run, [scored], True)], max_pass_tokens=64)
    np.testing.assert_allclose(sequence.logprobs, outcome.logprobs[0][len(prompt) - 1 :], atol=1e-5)
    scores = finished[0].scores.prompt_logprobs
    assert scores is not None
    assert np.isnan(scores[0])
    np.testing.assert_allclose(scores[1:], outcome.logprobs[0][: len(prompt) - 1], atol=1e-5)
