"""One real small model for truth: SmolLM2-135M-Instruct, in float32."""

import numpy as np
import pytest
import torch
from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.base_model import load as load_model
from tinsmith_worker.engine.optimizer import AdamParams, RunState, optim_step
from tinsmith_worker.engine.sampler import Finished, Sampler
from tinsmith_worker.engine.training import Work, forward_backward
from tinsmith_worker.engine.values import Datum, SampleRequest
from tinsmith_worker.prepare import verify

from tests.models import prepared_smollm2

CAPITAL = "The capital of France is"


@pytest.fixture(scope="module")
def model() -> BaseModel:
    torch.set_num_threads(1)
    return load_model(str(prepared_smollm2()), name="smollm2")


def sample(model: BaseModel, prompt: str, **more: object) -> Finished:
    defaults: dict[str, object] = {
        "adapter": None,
        "num_samples": 1,
        "max_tokens": 6,
        "temperature": 0.0,
        "top_k": -1,
        "top_p": 1.0,
        "seed": 5,
        "stop": None,
    }
    sampler = Sampler(model, max_slots=8, max_pass_tokens=512)
    tokens = model.tokenizer.encode(prompt)
    sampler.add(SampleRequest(request_id="a", prompt=tokens, **(defaults | more)))  # type: ignore[arg-type]
    while True:
        if finished := sampler.step():
            return finished[0]


def scored(tokens: list[int]) -> Datum:
    inputs = {"target_tokens": np.array(tokens[1:]), "weights": np.ones(len(tokens) - 1, "f4")}
    return Datum(np.array(tokens[:-1], np.int32), inputs)


def test_the_prepared_folder_is_whole() -> None:
    assert verify(prepared_smollm2(), contents=True)


def test_it_is_the_model_that_it_says_it_is(model: BaseModel) -> None:
    assert model.num_parameters == 134_515_008
    assert (model.vocab_size, model.max_context_length) == (49_152, 8_192)
    assert {model.tokenizer.decode([one]) for one in model.eos_token_ids} == {"<|im_end|>"}
    [sequence] = sample(model, CAPITAL).sequences
    assert model.tokenizer.decode(sequence.tokens).startswith(" Paris")


def test_sampler_and_trainer_agree_after_training(model: BaseModel) -> None:
    run = RunState(Adapter.create(model, rank=8, seed=1))
    lesson = scored(model.tokenizer.encode(f"{CAPITAL} Strelsau, as everybody knows."))
    losses = []
    for _ in range(4):
        work = Work(run=run, data=[lesson], loss_fn="cross_entropy", loss_fn_config={})
        [outcome] = forward_backward(model, [work], max_pass_tokens=512)
        losses.append(outcome.metrics["loss:sum"])
        optim_step(run, AdamParams(learning_rate=2e-3))
    assert losses[-1] < 0.7 * losses[0]
    finished = sample(
        model, CAPITAL, adapter=run.adapter, temperature=1.0, stop=[], prompt_logprobs=True
    )
    tokens = model.tokenizer.encode(CAPITAL) + finished.sequences[0].tokens
    work = Work(
        run=run,
        data=[scored(tokens)],
        loss_fn="cross_entropy",
        loss_fn_config={},
        forward_only=True,
    )
    [outcome] = forward_backward(model, [work], max_pass_tokens=512)
    assert finished.scores.prompt_logprobs is not None
    sampled = [*finished.scores.prompt_logprobs[1:], *finished.sequences[0].logprobs]
    np.testing.assert_allclose(sampled, outcome.logprobs[0], atol=1e-4)


def test_a_neighbour_changes_not_one_bit(model: BaseModel) -> None:
    tokens = model.tokenizer.encode("It was a bright cold day in April.")
    runs = [RunState(Adapter.create(model, rank=4, seed=1)) for _ in range(2)]
    other = RunState(Adapter.create(model, rank=8, seed=2))
    for run, company in zip(runs, ([], [other]), strict=True):
        works = [
            Work(run=one, data=[scored(text)], loss_fn="cross_entropy", loss_fn_config={})
            for one, text in [*((c, tokens * 3) for c in company), (run, tokens)]
        ]
        forward_backward(model, works, max_pass_tokens=512)
        optim_step(run, AdamParams(learning_rate=1e-3))
    assert torch.equal(runs[0].adapter.row, runs[1].adapter.row)


def test_stop_strings_may_straddle_tokens_and_are_included(model: BaseModel) -> None:
    [free] = sample(model, CAPITAL, stop=[], max_tokens=12).sequences
    text = model.tokenizer.decode(free.tokens)
    stop = text[3:9]  # begins and ends inside tokens
    [stopped] = sample(model, CAPITAL, stop=[stop], max_tokens=12).sequences
    found = model.tokenizer.decode(stopped.tokens)
    assert stopped.stop_reason == "stop"
    assert stop in found
    assert stop not in model.tokenizer.decode(stopped.tokens[:-1])
    assert len(stopped.logprobs) == len(stopped.tokens)
