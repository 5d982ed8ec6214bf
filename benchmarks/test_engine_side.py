"""Our side does the work that the rival does, and a switch changes its cost only (a tiny Llama)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tinsmith_worker.engine import kernels
from torch.testing import assert_close

from benchmarks.engine_side import Ours, torchs_ops
from benchmarks.peft_side import Rival
from benchmarks.workloads import Batch, Datum, SampleRequest, chunks

RANK = 4


@pytest.fixture(scope="module")
def ours(tiny_folder: Path) -> Ours:
    return Ours(tiny_folder, torch.float32, num_adapters=3, rank=RANK)


def group(seed: int = 0) -> Batch:
    """Four datums with one beginning, long enough to be shared; loss on the rest."""
    random = np.random.default_rng(seed)
    shared = random.integers(1, 99, 24)

    def datum(length: int) -> Datum:
        tokens = np.concatenate([shared, random.integers(1, 99, length)]).astype(np.int32)
        weights = (np.arange(tokens.size - 1) >= shared.size).astype(np.float32)
        return Datum(tokens[:-1], tokens[1:], weights)

    return Batch(tuple(datum(length) for length in (5, 17, 9, 12)))


def gathered(ours: Ours) -> list[torch.Tensor]:
    rows = [run.gradient for run in ours.runs if run.gradient is not None]
    ours.zero_grad()
    return rows


def test_loss_and_gradient_are_the_rivals_under_its_weights(ours: Ours, tiny_folder: Path):
    rival = Rival(tiny_folder, torch.float32, rank=RANK)
    ours.take_weights(rival.weights())
    assert ours.forward_backward(group()) == pytest.approx(
        rival.forward_backward(group()), rel=1e-5
    )
    mine = ours.gradients()
    theirs = {name.replace(".adapter_0.", "."): p.grad for name, p in rival.parameters().items()}
    assert mine.keys() == theirs.keys()
    for name, gradient in mine.items():
        assert gradient.abs().sum() > 0
        assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-6)
    ours.zero_grad()


def test_what_a_switch_turns_off_changes_no_gradient(ours: Ours):
    ours.forward_backward(group())
    [expected] = gathered(ours)
    ours.forward_backward(group(), share_prompts=False)
    [unshared] = gathered(ours)
    with ours.plain_weights():
        assert all(one._blocked is None for one in ours.model._groups)
        ours.forward_backward(group())
    [plain] = gathered(ours)
    ours.forward_backward_chunks(chunks(group(), 2))
    [chunked] = gathered(ours)
    with torchs_ops():
        assert kernels.kernels_for(expected) is None
        ours.forward_backward(group())
    [uncompiled] = gathered(ours)
    for other in (unshared, plain, chunked, uncompiled):
        assert_close(other, expected, rtol=1e-4, atol=1e-6)


def test_tenants_together_learn_what_they_learn_in_turn(ours: Ours):
    batches = [group(seed) for seed in range(3)]
    assert ours.forward_backward_together(batches) == ours.forward_backward_in_turn(batches)
    ours.zero_grad()
    ours.forward_backward_together(batches)
    together = gathered(ours)
    ours.forward_backward_in_turn(batches)
    assert len(together) == 3
    for one, other in zip(together, gathered(ours), strict=True):
        assert torch.equal(one, other)


def test_samples_have_their_length_and_are_the_same_with_and_without_shared_prefixes(ours: Ours):
    prompt = np.arange(1, 40, dtype=np.int32)
    requests = [SampleRequest(prompt, 3 + index, index % 3, seed=index) for index in range(5)]
    shared = ours.sample(requests, slots=2)
    alone = ours.sample(requests, slots=2, share_prefixes=False)
    for request, one, other in zip(requests, shared, alone, strict=True):
        assert len(one.sequences[0].tokens) == request.new_tokens
        assert one.sequences[0].tokens == other.sequences[0].tokens
    assert any(one.prompt_cache_hit_tokens for one in shared)
    assert not any(one.prompt_cache_hit_tokens for one in alone)


def test_samples_apart_are_as_many_as_the_samples_of_one_request(ours: Ours):
    request = SampleRequest(np.arange(1, 9, dtype=np.int32), 4, 0, seed=0, num_samples=5)
    [together] = ours.sample([request])
    apart = ours.sample_apart(request)
    assert len(together.sequences) == len(apart) == 5
    assert [len(one.sequences) for one in apart] == [1] * 5


def test_scores_are_the_forwards_alone_and_in_company(ours: Ours):
    prompts = [datum.tokens for datum in group().data]
    weightless = tuple(replace(d, weights=np.zeros_like(d.weights)) for d in group().data)
    expected = ours.forward(Batch(weightless))
    for scored in (ours.score(prompts), ours.score_one_by_one(prompts)):
        for one, logprobs in zip(scored, expected, strict=True):
            assert one.scores.prompt_logprobs is not None
            assert_close(torch.from_numpy(one.scores.prompt_logprobs[1:]), logprobs[:-1])
