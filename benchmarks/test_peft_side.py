"""The rival does what it is timed for: every way of it gives one answer (a tiny random Llama)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from benchmarks.peft_side import Completion, Rival
from benchmarks.workloads import Batch, Datum, SampleRequest


@pytest.fixture(scope="module")
def rival(tiny_folder: Path) -> Rival:
    return Rival(tiny_folder, torch.float32, num_adapters=2, rank=4)


def ragged() -> Batch:
    random = np.random.default_rng(0)

    def datum(length: int) -> Datum:
        tokens = random.integers(1, 99, length + 1).astype(np.int32)
        weights = (np.arange(length) >= length // 2).astype(np.float32)
        return Datum(tokens[:-1], tokens[1:], weights)

    return Batch(tuple(datum(length) for length in (5, 17, 9, 12, 3)))


def gradients(rival: Rival, adapter: int = 0) -> list[torch.Tensor]:
    found = [p.grad for p in rival.parameters(adapter).values()]
    return [gradient.clone() for gradient in found if gradient is not None]


def test_padding_sorting_and_micro_batches_change_neither_loss_nor_gradient(rival: Rival):
    batch = ragged()
    rival.zero_grad()
    loss, expected = rival.forward_backward(batch), gradients(rival)
    assert len(expected) == 2 * 7 * 2  # layers, linears, A and B
    assert all(gradient.abs().sum() > 0 for gradient in expected)
    for again in (
        lambda: rival.forward_backward_at_best(batch),
        lambda: rival.forward_backward(batch, micro_batch=1),
    ):
        rival.zero_grad()
        assert again() == pytest.approx(loss, rel=1e-5)
        assert_close(gradients(rival), expected, rtol=1e-4, atol=1e-6)


def test_each_tenant_trains_its_own_adapter(rival: Rival):
    rival.zero_grad()
    batch = ragged()
    losses = rival.forward_backward_in_turn([batch, batch])
    assert losses[0] != losses[1]
    assert all(gradients(rival, adapter) for adapter in (0, 1))


def test_sampled_logprobs_are_those_of_the_requests_own_adapter(rival: Rival):
    requests = [
        SampleRequest(np.arange(1, 4 + index, dtype=np.int32), 3 + index, index % 2, seed=index)
        for index in range(4)
    ]
    for sample in (rival.sample_mixed, rival.sample_per_adapter):
        for completion, request in zip(sample(requests, slots=3), requests, strict=True):
            check(rival, request, completion)


def test_many_samples_of_a_prompt_come_back_each_with_its_logprobs(rival: Rival):
    request = SampleRequest(np.arange(1, 9, dtype=np.int32), 4, 1, seed=0, num_samples=5)
    completions = rival.sample_many(request)
    assert len(completions) == 5
    assert len({tuple(completion.tokens) for completion in completions}) > 1
    for completion in completions:
        check(rival, request, completion)


def check(rival: Rival, request: SampleRequest, completion: Completion) -> None:
    assert len(completion.tokens) == request.new_tokens
    rival.model.set_adapter(f"adapter_{request.adapter}")
    tokens = torch.tensor([[*request.prompt.tolist(), *completion.tokens]])
    with torch.no_grad():
        logprobs = rival.model(tokens).logits[0, -1 - request.new_tokens : -1].log_softmax(-1)
    own = logprobs.gather(1, torch.tensor(completion.tokens)[:, None]).squeeze(1)
    assert_close(torch.tensor(completion.logprobs), own, rtol=1e-4, atol=1e-5)
