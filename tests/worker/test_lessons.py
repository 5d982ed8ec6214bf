"""Losses with a teacher inside the engine: gradients against autograd over whole logits, and properties.

The plain formula next to which each number is put works on the logits of all rows at once.
"""

from typing import Any

import numpy as np
import pytest
import torch
from tinsmith_worker import checkpoint_files
from tinsmith_worker.engine import head
from tinsmith_worker.engine.base_model import BaseModel, load
from tinsmith_worker.engine.optimizer import AdamParams, RunState, optim_step
from tinsmith_worker.engine.packed import Segment
from tinsmith_worker.engine.readings import Teacher
from tinsmith_worker.engine.training import Outcome, Work, forward_backward
from tinsmith_worker.engine.values import Datum
from torch import Tensor
from torch.testing import assert_close

from tests.worker.test_trainer import run_of
from tests.worker.tiny_models import VOCAB, save


@pytest.fixture(scope="module", params=["qwen3", "gemma3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load(str(save(request.param, tmp_path_factory.mktemp(request.param))), name="tiny")


def datum(seed: int, length: int, prompt: int = 4, **more: Any) -> Datum:
    tokens = np.random.default_rng(seed).integers(2, VOCAB, length + 1)
    weights = np.random.default_rng(seed).uniform(0.5, 1.5, length).astype(np.float32)
    weights[:prompt] = 0
    inputs = {"target_tokens": tokens[1:], "weights": weights} | more
    return Datum(tokens[:-1].astype(np.int32), inputs)


DATA = [datum(1, 20), datum(2, 33), datum(3, 9)]


def teach(
    model: BaseModel,
    data: list[Datum] = DATA,
    loss_fn: str = "x_distill_jsd",
    teacher: Teacher | None = None,
    run: RunState | None = None,
    max_pass_tokens: int = 4096,
    **config: float | str,
) -> tuple[Outcome, Tensor]:
    run = run or run_of(model)
    teacher = teacher or Teacher("base", model)
    config = {"teacher": teacher.name} | config
    work = Work(run=run, data=data, loss_fn=loss_fn, loss_fn_config=config, teachers=(teacher,))
    [outcome] = forward_backward(model, [work], max_pass_tokens=max_pass_tokens)
    assert outcome.error is None, outcome.error
    assert run.gradient is not None
    return outcome, run.gradient


def logits_of(model: BaseModel, tokens: Any, adapter: Any = None) -> Tensor:
    with torch.no_grad():
        hidden = model.hidden(model.new_pass([Segment(list(tokens), adapter)]))[: len(tokens)]
        rows = [head.AdapterRows(slice(0, len(tokens)), adapter)] if adapter else []
        return model.logits(hidden, rows)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_teacher_that_is_the_student_teaches_nothing(model: BaseModel, beta: float) -> None:
    run = run_of(model)
    outcome, gradient = teach(
        model, run=run, teacher=Teacher("self", model, run.adapter), beta=beta
    )
    assert abs(outcome.metrics["loss:sum"]) < 1e-5
    assert float(gradient.norm()) < 1e-4


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_gradient_is_the_slope_of_the_loss(model: BaseModel, beta: float) -> None:
    _, gradient = teach(model, beta=beta, ce_weight=0.2, temperature=1.3)
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(3))
    direction /= direction.norm()
    sums = []
    for step in (1e-2, -1e-2):
        run = run_of(model)
        run.adapter.row += step * direction
        run.adapter.changed()
        outcome, _ = teach(model, run=run, beta=beta, ce_weight=0.2, temperature=1.3)
        sums.append(outcome.metrics["loss:sum"])
    slope = (sums[0] - sums[1]) / 2e-2
    assert float(gradient @ direction) == pytest.approx(slope, rel=2e-2, abs=2e-2)


def test_cutting_and_chunking_change_nothing(
    model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = teach(model, beta=0.5)
    _, cut = teach(model, beta=0.5, max_pass_tokens=34)
    monkeypatch.setattr(head, "HEAD_ROWS", 5)
    _, chunked = teach(model, beta=0.5)
    for one in (cut, chunked):
        assert_close(one, whole, atol=1e-5 * float(whole.abs().max()), rtol=1e-4)


def test_order_and_company_change_nothing(model: BaseModel) -> None:
    """In exact mode: to the last bit, whatever else the pass holds."""
    outcome, alone = teach(model, beta=0.5)
    other = Work(
        run=run_of(model, 8),
        data=[datum(9, 40)],
        loss_fn="x_distill_jsd",
        loss_fn_config={"teacher": "base"},
        teachers=(Teacher("base", model),),
    )
    run = run_of(model)
    mine = Work(
        run=run,
        data=DATA,
        loss_fn="x_distill_jsd",
        loss_fn_config={"teacher": "base", "beta": 0.5},
        teachers=(Teacher("base", model),),
    )
    _, together = forward_backward(model, [other, mine], max_pass_tokens=4096)
    assert run.gradient is not None
    assert torch.equal(run.gradient, alone)
    assert together.metrics["loss:sum"] == outcome.metrics["loss:sum"]
    flipped, gradient = teach(model, DATA[::-1], beta=0.5)
    assert flipped.metrics["loss:sum"] == pytest.approx(outcome.metrics["loss:sum"], rel=1e-5)
    assert_close(gradient, alone, atol=1e-5 * float(alone.abs().max()), rtol=1e-4)


def test_a_teachers_own_prompt_changes_what_it_says_of_the_same_answer(model: BaseModel) -> None:
    plain, tokens = DATA[0], [*DATA[0].tokens, DATA[0].inputs["target_tokens"][-1]]
    same = Datum(plain.tokens, plain.inputs | {"teacher_tokens": np.array(tokens)})
    longer = np.array([7, 7, 50, *tokens[3:]])
    hinted = Datum(plain.tokens, plain.inputs | {"teacher_tokens": longer})
    places = np.arange(len(longer) - plain.tokens.size, len(longer))
    pointed = Datum(plain.tokens, hinted.inputs | {"teacher_pos": places})
    found = [teach(model, [one])[0].more["divergence"][0] for one in (plain, same, hinted, pointed)]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[2], found[3])
    assert np.abs(found[0] - found[2]).max() > 1e-4
    theirs, ours = (
        logits_of(model, longer[:-1]),
        logits_of(model, plain.tokens, run_of(model).adapter),
    )
    n = plain.tokens.size
    lp, lq = ours[4:].log_softmax(-1), theirs[-(n - 4) :].log_softmax(-1)
    expected = (lp.exp() * (lp - lq)).sum(-1)
    np.testing.assert_allclose(found[2][4:], expected.numpy(), atol=2e-5)


def test_an_answer_that_is_not_the_teachers_is_refused(model: BaseModel) -> None:
    tokens = np.array([*DATA[0].tokens, 5])
    run = run_of(model)
    wrong = Datum(DATA[0].tokens, DATA[0].inputs | {"teacher_tokens": tokens})
    work = Work(
        run=run,
        data=[wrong],
        loss_fn="x_distill_jsd",
        loss_fn_config={"teacher": "base"},
        teachers=(Teacher("base", model),),
    )
    [outcome] = forward_backward(model, [work], max_pass_tokens=4096)
    assert outcome.error is not None
    assert "teacher_pos" in outcome.error
    assert run.gradient is None


def with_logprobs(one: Datum, seed: int = 5) -> Datum:
    drawn = np.random.default_rng(seed).normal(-4.5, 0.3, one.tokens.size).astype(np.float32)
    return Datum(one.tokens, one.inputs | {"logprobs": drawn})


@pytest.mark.parametrize("gamma", [0.0, 0.9])
def test_tokens_of_weight_zero_get_no_gradient(model: BaseModel, gamma: float) -> None:
    """A mask that only zeroes the target's advantage would let returns reach into the prompt."""
    one = with_logprobs(DATA[1])
    changed = np.array(one.inputs["target_tokens"])
    changed[1] = (changed[1] + 1) % VOCAB  # a target of the prompt alone: what follows reads tokens
    other = Datum(one.tokens, one.inputs | {"target_tokens": changed})
    results = [teach(model, [each], "x_distill_pg", gamma=gamma)[1] for each in (one, other)]
    assert torch.equal(*results)


def test_the_policy_gradient_is_tinkers(model: BaseModel) -> None:
    """advantages = log q - log p of the sampler, then importance_sampling: two calls or one."""
    data = [with_logprobs(one) for one in DATA]
    outcome, gradient = teach(model, data, "x_distill_pg", **{"return": "teacher_logprobs"})
    again = []
    for one, theirs in zip(data, outcome.more["teacher_logprobs"], strict=True):
        weights, drawn = one.inputs["weights"], one.inputs["logprobs"]
        advantages = (weights * (theirs - drawn)).astype(np.float32)
        inputs = {
            "target_tokens": one.inputs["target_tokens"],
            "logprobs": drawn,
            "advantages": advantages,
        }
        again.append(Datum(one.tokens, inputs))
    run = run_of(model)
    work = Work(run=run, data=again, loss_fn="importance_sampling", loss_fn_config={})
    [expected] = forward_backward(model, [work], max_pass_tokens=4096)
    assert run.gradient is not None
    assert_close(gradient, run.gradient)
    assert outcome.metrics["loss:sum"] == pytest.approx(expected.metrics["loss:sum"], rel=1e-5)


def test_one_step_of_minillm_is_the_whole_vocabularys_kl(model: BaseModel) -> None:
    data = [with_logprobs(one) for one in DATA]
    _, step = teach(model, data, "x_distill_pg", kl_coef=0.0, single_step=1.0)
    _, full = teach(model, DATA, "x_distill_jsd", beta=1.0)
    assert_close(step, full, atol=1e-6 * float(full.abs().max()), rtol=1e-5)


def test_every_support_within_the_engine(model: BaseModel) -> None:
    """All of the vocabulary as a support is the whole vocabulary; a small one is less of it."""
    whole, gradient = teach(model, beta=0.5)
    every, same = teach(model, beta=0.5, top_k=float(VOCAB))
    assert every.metrics["loss:sum"] == pytest.approx(whole.metrics["loss:sum"], rel=1e-4)
    assert_close(same, gradient, atol=1e-4 * float(gradient.abs().max()), rtol=1e-3)
    some, _ = teach(model, beta=0.5, top_k=4.0)
    assert some.metrics["distill/support_mass_student:sum"] < some.metrics["distill/tokens:sum"]
    assert 0 < some.metrics["loss:sum"] < whole.metrics["loss:sum"]


@pytest.mark.parametrize("merge", ["bayesian", "observed"])
def test_the_gradient_of_merged_groups_is_the_slope(
    model: BaseModel, merge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "HEAD_ROWS", 5)  # groups are wider than that, and stay whole
    one = datum(4, 20)
    tokens = np.append(one.tokens, one.inputs["target_tokens"][-1:])
    align = np.array([[4, 5, 5, 7], [5, 12, 7, 8], [12, 15, 8, 14], [15, 19, 14, 20]])
    pieces = {"align": align, "teacher_tokens": tokens}
    data = [Datum(one.tokens, one.inputs | pieces)]
    how: Any = {"mode": "gold", "hybrid": 0.0, "merge": merge}
    outcome, gradient = teach(model, data, "x_distill_uld", **how)
    assert outcome.metrics["distill/chunks:sum"] == 4
    direction = gradient / gradient.norm()
    sums = []
    for step in (3e-3, -3e-3):
        run = run_of(model)
        run.adapter.row += step * direction
        run.adapter.changed()
        sums.append(teach(model, data, "x_distill_uld", run=run, **how)[0].metrics["loss:sum"])
    assert float(gradient.norm()) == pytest.approx((sums[0] - sums[1]) / 6e-3, rel=0.05)


def test_an_average_follows_the_weights_and_outlives_a_checkpoint(model: BaseModel) -> None:
    run = run_of(model)
    teacher = Teacher("ema", model, run.averaged(0.25, 2))
    work = Work(
        run=run,
        data=DATA,
        loss_fn="x_distill_jsd",
        loss_fn_config={"teacher": "ema:0.25:2"},
        teachers=(teacher,),
        averages=((0.25, 2),),
    )
    first = run.adapter.row.clone()
    [outcome] = forward_backward(model, [work], max_pass_tokens=4096)
    assert outcome.error is None
    optim_step(run, AdamParams(learning_rate=1e-2))
    assert torch.equal(run.averages[0.25, 2], first)  # only each second step is taken in
    optim_step(run, AdamParams(learning_rate=1e-2))
    expected = 0.75 * first + 0.25 * run.adapter.row
    assert_close(run.averages[0.25, 2], expected)
    again = checkpoint_files.unpack(model, checkpoint_files.pack(run, "tiny", optimizer=True))
    assert torch.equal(again.averages[0.25, 2], run.averages[0.25, 2])
    assert torch.equal(run.averaged(0.25, 2).row, run.averages[0.25, 2])
