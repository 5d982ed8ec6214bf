"""Exact mode: a token's logprob is one number to the last bit, whoever asks and in whatever company."""

import multiprocessing
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.base_model import BaseModel, load
from tinsmith_worker.engine.optimizer import RunState
from tinsmith_worker.engine.sampler import Finished, Sampler
from tinsmith_worker.engine.training import Work, forward_backward
from tinsmith_worker.engine.values import Datum, SampleRequest

from tests.models import prepared_smollm2

PROMPTS = [
    "The capital of France is",
    "In the beginning there was nothing but a long, long row of numbers, and somebody had to add "
    "them up one after another until the last of them was done; so it was written down that whoever "
    "adds them in another order shall find another sum, and nobody believed it, because a sum is a "
    "sum, they said, and what is a bit among friends? But there it was in the last place of the "
    "last number, and it grew, as such things do, from a bit to a byte and from a byte to a word, "
    "and the word was wrong, and so was every word that came after it, all the way to the",
]


def sampled(model: BaseModel, requests: list[SampleRequest]) -> dict[str, Finished]:
    sampler = Sampler(model, max_slots=32, max_pass_tokens=160)
    for one in requests:
        sampler.add(one)
    found: dict[str, Finished] = {}
    while sampler.busy:
        found |= {one.request_id: one for one in sampler.step()}
    return found


def check(dtype: torch.dtype, threads: int) -> None:
    torch.set_num_threads(threads)
    model = load(str(prepared_smollm2()), name="smollm2", dtype=dtype, exact=True)
    assert model.numerics.held
    runs = [RunState(Adapter.create(model, rank=8, seed=seed)) for seed in range(2)]
    for seed, run in enumerate(runs):
        generator = torch.Generator().manual_seed(seed)
        run.adapter.row += 0.02 * torch.randn(run.adapter.row.shape, generator=generator)
        run.adapter.changed()
    requests = [
        SampleRequest(
            request_id=f"{place}/{owner}",
            adapter=None if owner == 2 else runs[owner].adapter,
            prompt=model.tokenizer.encode(prompt),
            num_samples=2,
            max_tokens=4 + 3 * place,
            temperature=1.0,
            top_k=-1,
            top_p=1.0,
            seed=place,
            stop=[],
            prompt_logprobs=True,
        )
        for place, prompt in enumerate(PROMPTS)
        for owner in range(3)
    ]
    together = sampled(model, requests)
    for one in requests[1:-1]:
        alone = sampled(model, [one])[one.request_id]
        for left, right in zip(alone.sequences, together[one.request_id].sequences, strict=True):
            assert left.tokens == right.tokens
            assert left.logprobs == right.logprobs
    for owner, run in enumerate(runs):
        mine = [one for one in requests if one.request_id.endswith(f"/{owner}")]
        agree_with_trainer(model, run, mine, together)


def agree_with_trainer(
    model: BaseModel, run: RunState, mine: list[SampleRequest], found: dict[str, Finished]
) -> None:
    data, expected = [], []
    for one in mine:
        finished = found[one.request_id]
        scores = finished.scores.prompt_logprobs
        assert scores is not None
        for sequence in finished.sequences:
            tokens = np.array([*one.prompt, *sequence.tokens])
            inputs = {"target_tokens": tokens[1:], "weights": np.ones(len(tokens) - 1, np.float32)}
            data.append(Datum(tokens[:-1].astype(np.int32), inputs))
            expected.append(np.array([*scores[1:], *sequence.logprobs], np.float32))
    work = Work(run=run, data=data, loss_fn="cross_entropy", loss_fn_config={})
    [packed] = forward_backward(model, [work], max_pass_tokens=2048)
    for one, ours, theirs in zip(data, packed.logprobs, expected, strict=True):
        assert np.array_equal(ours, theirs)
        if len(one.tokens) > 100:
            continue
        lone = Work(run=run, data=[one], loss_fn="cross_entropy", loss_fn_config={})
        [outcome] = forward_backward(model, [lone], max_pass_tokens=2048)
        assert np.array_equal(outcome.logprobs[0], ours)


def in_fresh_process(target: Callable[..., None], *arguments: object) -> None:
    """Threads are set once in a process, and the other tests want one."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_sampler_and_trainer_are_equal_to_the_last_bit(dtype: torch.dtype, threads: int) -> None:
    in_fresh_process(check, dtype, threads)
