"""Distillation losses through HTTP with the official SDK: teachers, outputs, and what is refused."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tinker
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tinker import types
from transformers import AutoModelForCausalLM

from tests.contract.conftest import BASE_MODEL, SECOND_MODEL, VOCAB, Service

PROMPT = 5
TOKENS = [[5, 9, 14, 3, 22, 41, 8, 17], [7, 31, 12, 60, 2, 2, 90], [4, 8, 15, 16, 23, 42, 11, 3, 9]]


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[tinker.ServiceClient]:
    os.environ["TINKER_TELEMETRY"] = "0"
    with tinker.ServiceClient(base_url=service.url, api_key=service.api_key) as client:
        yield client


@pytest.fixture(scope="module")
def other(service: Service) -> Iterator[tinker.ServiceClient]:
    with tinker.ServiceClient(base_url=service.url, api_key=service.other_key) as client:
        yield client


def data(**more: Any) -> list[types.Datum]:
    return [datum(tokens, **more) for tokens in TOKENS]


def datum(tokens: list[int], **more: Any) -> types.Datum:
    weights = np.ones(len(tokens) - 1, np.float32)
    weights[: PROMPT - 1] = 0
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": weights} | more,  # type: ignore[arg-type]
    )


def new_run(client: tinker.ServiceClient, seed: int = 4, steps: int = 0) -> tinker.TrainingClient:
    """After some steps on its own, so that it is not its base model any more."""
    run = client.create_lora_training_client(BASE_MODEL, rank=4, seed=seed).result(60)
    for _ in range(steps):
        run.forward_backward(data(), "cross_entropy").result(60)
        run.optim_step(types.AdamParams(learning_rate=1e-2)).result(60)
    return run


def logits(run: tinker.TrainingClient, tokens: list[int]) -> np.ndarray[Any, Any]:
    """log p of every token after every row, from cross_entropy's [N, K] targets."""
    count = len(tokens) - 1
    every = np.tile(np.arange(VOCAB, dtype=np.int64), (count, 1))
    one = types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={  # type: ignore[arg-type]
            "target_tokens": every,
            "weights": np.zeros((count, VOCAB), np.float32),
        },
    )
    output = run.forward([one], "cross_entropy").result(60).loss_fn_outputs[0]
    return np.array(output["logprobs"].tolist()).reshape(count, VOCAB)


def divergence(lp: Any, lq: Any, beta: float) -> Any:
    """By the definition, in float64."""
    lp, lq = torch.tensor(lp).double(), torch.tensor(lq).double()
    if beta in (0, 1):
        one, two = (lq, lp) if beta == 0 else (lp, lq)
        return (one.exp() * (one - two)).sum(-1)
    lm = torch.logaddexp(lp + np.log1p(-beta), lq + np.log(beta))
    return beta * (lq.exp() * (lq - lm)).sum(-1) + (1 - beta) * (lp.exp() * (lp - lm)).sum(-1)


@pytest.mark.parametrize("kind", ["base", "other base", "checkpoint", "sampler checkpoint"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_divergence_from_a_teacher_is_the_definition(
    client: tinker.ServiceClient, kind: str, beta: float
) -> None:
    run = new_run(client, steps=1)
    if kind == "base":
        teacher, same = "base", client.create_lora_training_client(BASE_MODEL, rank=4).result(60)
    elif kind == "other base":
        teacher = SECOND_MODEL
        same = client.create_lora_training_client(SECOND_MODEL, rank=4).result(60)
    else:
        same = new_run(client, seed=9, steps=2)
        save = same.save_state if kind == "checkpoint" else same.save_weights_for_sampler
        teacher = save("teacher").result(60).path
    config: Any = {"teacher": teacher, "beta": beta, "return": "divergence,teacher_logprobs"}
    result = run.forward_backward(data(), "x_distill_jsd", config).result(60)
    total = 0.0
    for tokens, output in zip(TOKENS, result.loss_fn_outputs, strict=True):
        lp, lq = logits(run, tokens), logits(same, tokens)
        expected = divergence(lp, lq, beta).numpy()
        expected[: PROMPT - 1] = 0
        np.testing.assert_allclose(output["divergence"].tolist(), expected, atol=1e-5)
        theirs = lq[np.arange(len(tokens) - 1), tokens[1:]]
        found = np.array(output["teacher_logprobs"].tolist())
        np.testing.assert_allclose(found[PROMPT - 1 :], theirs[PROMPT - 1 :], atol=1e-5)
        total += expected.sum()
    assert result.metrics["loss:sum"] == pytest.approx(total, abs=1e-4)
    assert result.metrics["distill/tokens:sum"] == sum(len(one) - PROMPT for one in TOKENS)
    assert run.optim_step(types.AdamParams(learning_rate=0.0)).result(60).metrics["grad_norm"] > 0


def test_training_brings_the_student_to_its_teacher(client: tinker.ServiceClient) -> None:
    teacher = new_run(client, seed=9, steps=6).save_state("good").result(60).path
    run, found = new_run(client), []
    config: Any = {"teacher": teacher}
    for _ in range(20):
        result = run.forward_backward(data(), "x_distill_jsd", config).result(60)
        run.optim_step(types.AdamParams(learning_rate=1e-2)).result(60)
        found.append(result.metrics["distill/divergence:sum"])
    assert found[-1] < 0.25 * found[0]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "teacher"),
        ({"teacher": "no/such"}, "not held"),
        ({"teacher": "base", "betta": 0.5}, "betta"),
        ({"teacher": "base", "beta": 1.5}, "from 0 to 1"),
        ({"teacher": "base", "temperature": 0.0}, "temperature"),
        ({"teacher": "base", "top_k": 1.0, "tail": 0.0}, "teaches nothing"),
        ({"teacher": "base|self"}, "teacher_index"),
        ({"teacher": "ema:2"}, "ema"),
        ({"teacher": "base", "return": "everything"}, "return"),
        ({"teacher": "base", "resolved_teachers": "[]"}, "resolved_teachers"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(
    client: tinker.ServiceClient, config: Any, said: str
) -> None:
    run = new_run(client)
    with pytest.raises(tinker.RequestFailedError, match=said):
        run.forward_backward(data(), "x_distill_jsd", config or {"beta": 0.5}).result(60)
    # Its place in the order was taken all the same.
    run.forward_backward(data(), "x_distill_jsd", {"teacher": "base"}).result(60)


def test_another_tenants_checkpoint_is_as_absent_as_none(
    client: tinker.ServiceClient, other: tinker.ServiceClient
) -> None:
    theirs = new_run(other).save_state("secret").result(60).path
    run = new_run(client)
    said = []
    for path in (theirs, theirs.replace("secret", "nothing")):
        with pytest.raises(tinker.RequestFailedError, match="there is no checkpoint") as raised:
            run.forward_backward(data(), "x_distill_jsd", {"teacher": path}).result(60)
        said.append(str(raised.value).replace(path, ""))
    assert "tinker://" not in said[0]


@pytest.mark.parametrize("loss", ["x_distill_jsd", "cross_entropy"])
def test_no_client_writes_what_the_service_finds_of_teachers(
    client: tinker.ServiceClient, loss: str
) -> None:
    run = new_run(client)
    config: Any = {"resolved_teachers": '[{"name":"a","base_model":"b","prefix":"c"}]'}
    if loss == "x_distill_jsd":
        config["teacher"] = "base"
    with pytest.raises(tinker.RequestFailedError, match=r"loss_fn_config\.resolved_teachers"):
        run.forward_backward(data(), loss, config).result(60)
    run.forward_backward(data(), "x_distill_jsd", {"teacher": "base"}).result(60)


def test_the_losses_can_be_asked_for(service: Service) -> None:
    with service.http() as http:
        told = http.get("/extensions").json()
    assert told["losses"] == {"x_distill_jsd": 1, "x_distill_uld": 1, "x_distill_pg": 1}
    assert told["teachers"] == [BASE_MODEL, SECOND_MODEL]


def test_a_teacher_by_its_token_alone_and_by_stretches(client: tinker.ServiceClient) -> None:
    """x_distill_pg against advantages made by hand; stretches of one token are the same thing."""
    run = new_run(client, steps=1)
    lp, lq = (logits(one, TOKENS[0]) for one in (run, new_run(client, seed=3)))  # B is 0: its base
    count = len(TOKENS[0]) - 1
    at = np.arange(count), np.array(TOKENS[0][1:])
    drawn = (lp[at] - 0.1).astype(np.float32)
    scored = np.arange(count) >= PROMPT - 1
    expected = -(np.exp(lp[at] - drawn) * (lq[at] - drawn) * scored).sum()
    one = datum(TOKENS[0], logprobs=drawn)
    found = run.forward_backward([one], "x_distill_pg", {"teacher": "base"}).result(60)
    assert found.metrics["loss:sum"] == pytest.approx(expected, rel=1e-4)
    n = np.flatnonzero(scored)
    align = np.stack([n, n + 1, n + 1, n + 2], 1)
    pieces = {"align": align, "teacher_tokens": np.array(TOKENS[0])}
    split = datum(TOKENS[0], logprobs=drawn, **pieces)
    chunks = run.forward_backward([split], "x_distill_uld", {"teacher": "base"}).result(60)
    assert chunks.metrics["loss:sum"] == pytest.approx(expected, rel=1e-4)
    assert chunks.metrics["distill/chunks:sum"] == n.size


def test_sorted_probabilities_are_compared_whatever_they_are_called(
    client: tinker.ServiceClient,
) -> None:
    run = new_run(client, steps=1)
    second = client.create_lora_training_client(SECOND_MODEL, rank=4).result(60)
    p, q = (torch.tensor(logits(one, TOKENS[0])).exp() for one in (run, second))
    n = np.arange(PROMPT - 1, len(TOKENS[0]) - 1)
    expected = (p.sort(-1).values - q.sort(-1).values).abs().sum(-1)[n].sum()
    pieces = {
        "align": np.stack([n, n + 1, n + 1, n + 2], 1),
        "teacher_tokens": np.array(TOKENS[0]),
    }
    config: Any = {"teacher": SECOND_MODEL, "mode": "gold", "hybrid": 0.0}
    found = run.forward_backward([datum(TOKENS[0], **pieces)], "x_distill_uld", config).result(60)
    assert found.metrics["loss:sum"] == pytest.approx(float(expected), abs=1e-4)
    one = datum(TOKENS[0], teacher_tokens=np.array(TOKENS[0]))
    with pytest.raises(tinker.RequestFailedError, match="send align"):
        run.forward_backward([one], "x_distill_uld", {"teacher": SECOND_MODEL}).result(60)


def saved(service: Service, run: tinker.TrainingClient, name: str) -> Path:
    """The folder in the store of a checkpoint saved now: the only one that was not there before."""
    store = service.data_dir / "store" / "checkpoints"
    before = set(store.iterdir()) if store.exists() else set()
    run.save_state(name).result(60)
    [made] = set(store.iterdir()) - before
    return made


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_step_is_trls(client: tinker.ServiceClient, service: Service, beta: float) -> None:
    """One forward_backward and optim_step against GKDTrainer.compute_loss on peft, same adapter.

    Adam with betas 0 and a large eps moves by lr/eps times the gradient: so the weights tell it.
    """
    gkd = pytest.importorskip("trl.experimental.gkd").GKDTrainer
    run = new_run(client, steps=1)
    before = saved(service, run, f"before-{beta}")
    scored = sum(len(tokens) - PROMPT for tokens in TOKENS)
    ours = data()
    for one in ours:
        weights = one.loss_fn_inputs["weights"].to_numpy() / scored
        one.loss_fn_inputs["weights"] = types.TensorData.from_numpy(weights.astype(np.float32))
    run.forward_backward(ours, "x_distill_jsd", {"teacher": SECOND_MODEL, "beta": beta}).result(60)
    run.optim_step(types.AdamParams(learning_rate=100, beta1=0, beta2=0, eps=1e3)).result(60)
    after = saved(service, run, f"after-{beta}")
    weights = [load_file(one / "adapter_model.safetensors") for one in (before, after)]
    student = AutoModelForCausalLM.from_pretrained(service.data_dir / "tiny")
    student = PeftModel.from_pretrained(student, before, is_trainable=True)
    teacher = AutoModelForCausalLM.from_pretrained(service.data_dir / "tiny-two")
    width = max(map(len, TOKENS))
    ids = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens in TOKENS])
    there = torch.tensor([[1] * len(tokens) + [0] * (width - len(tokens)) for tokens in TOKENS])
    labels = ids.masked_fill(there == 0, -100)
    labels[:, :PROMPT] = -100
    inputs = {"input_ids": ids, "attention_mask": there, "labels": labels}
    trainer = SimpleNamespace(
        teacher_model=teacher, beta=beta, generalized_jsd_loss=gkd.generalized_jsd_loss
    )
    gkd.compute_loss(trainer, student, inputs).backward()
    compared = 0
    for name, parameter in student.named_parameters():
        key = name.replace(".default.", ".")
        if parameter.grad is not None:
            step = (weights[0][key] - weights[1][key]) * 10  # eps / lr
            torch.testing.assert_close(step, parameter.grad, atol=1e-5, rtol=1e-3)
            compared += 1
    assert compared == len(weights[0])
    assert any(one.abs().max() > 1e-3 for one in weights[0].values())
