"""A base model in bf16: its logits are fp32, and so is what a divergence makes of them."""

import math
import multiprocessing
import resource
from pathlib import Path

import pytest
import torch
from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.base_model import BaseModel, load
from tinsmith_worker.engine.packed import Segment
from tinsmith_worker.engine.readings import Teacher
from torch import Tensor
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

from tests.worker.test_lessons import DATA, datum, teach
from tests.worker.test_trainer import run_of
from tests.worker.tiny_models import save


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = save(request.param, tmp_path_factory.mktemp(request.param))
    return load(str(folder), name="tiny", dtype=torch.bfloat16)


def hidden_of(model: BaseModel, tokens: list[int], adapter: Adapter | None = None) -> Tensor:
    with torch.no_grad():
        return model.hidden(model.new_pass([Segment(tokens, adapter)]))[: len(tokens)]


def test_logits_are_not_rounded(model: BaseModel) -> None:
    hidden_NH = hidden_of(model, DATA[1].tokens.tolist())
    exact_NV = hidden_NH.double() @ model.head.weight.double().T
    found_NV = model.logits(hidden_NH, ())
    assert found_NV.dtype == torch.float32
    assert_close(found_NV.double(), exact_NV, rtol=2**-15, atol=1e-6)


def divergence(lp_NV: Tensor, lq_NV: Tensor, beta: float) -> Tensor:
    """The formula, term by term."""
    if beta == 0:
        return (lq_NV.exp() * (lq_NV - lp_NV)).sum(-1)
    if beta == 1:
        return (lp_NV.exp() * (lp_NV - lq_NV)).sum(-1)
    lm_NV = torch.logaddexp(lp_NV + math.log1p(-beta), lq_NV + math.log(beta))
    teachers = beta * (lq_NV.exp() * (lq_NV - lm_NV)).sum(-1)
    return teachers + (1 - beta) * (lp_NV.exp() * (lp_NV - lm_NV)).sum(-1)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_divergence_and_gradient_are_those_of_fp64(model: BaseModel, beta: float) -> None:
    """The reference begins at the same hidden states; what it asks of is the head's own adapter."""
    run, theirs = run_of(model, seed=4), run_of(model, seed=3).adapter
    outcome, gradient = teach(model, run=run, teacher=Teacher("other", model, theirs), beta=beta)
    weight_VH = model.head.weight.double()

    def head_of(adapter: Adapter) -> tuple[Tensor, Tensor]:
        lora = adapter.weights(model.head.paths, torch.float32)
        assert lora.b[0] is not None
        return lora.a.double(), lora.b[0].double()

    def log_softmax(adapter: Adapter, tokens: list[int], b_Vr: Tensor) -> Tensor:
        hidden_NH = hidden_of(model, tokens, adapter).double()
        learned_NV = adapter.scale * (hidden_NH @ head_of(adapter)[0].T) @ b_Vr.T
        return (hidden_NH @ weight_VH.T + learned_NV).log_softmax(-1)

    b_Vr = head_of(run.adapter)[1].requires_grad_()
    loss = torch.zeros((), dtype=torch.float64)
    for one in DATA:
        tokens = one.tokens.tolist()
        lp_NV = log_softmax(run.adapter, tokens, b_Vr)
        lq_NV = log_softmax(theirs, tokens, head_of(theirs)[1])
        weights_N = torch.from_numpy(one.inputs["weights"]).double()
        loss = loss + (weights_N * divergence(lp_NV, lq_NV, beta)).sum()
    loss.backward()
    assert b_Vr.grad is not None
    assert outcome.metrics["loss:sum"] == pytest.approx(loss.item(), rel=1e-4)
    found = run.adapter.layout.matrices(gradient)[model.head.paths].b[0]
    assert found is not None
    assert float((found - b_Vr.grad).norm() / b_Vr.grad.norm()) < 1e-4


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def weigh(folder: str) -> None:
    torch.set_num_threads(1)
    model = load(folder, name="wide", dtype=torch.bfloat16, exact=False)
    teach(model, [datum(1, 8)], beta=0.5)
    before = _peak_gib()
    outcome, _ = teach(model, [datum(2, 512, prompt=0), datum(3, 512, prompt=0)], beta=0.5)
    assert outcome.metrics["distill/tokens:sum"] == 1024
    assert _peak_gib() - before < 0.25


def test_a_thousand_rows_of_a_real_vocabulary_take_a_quarter_gib(tmp_path: Path) -> None:
    """In a process of its own, whose peak is its own."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(vocab_size=49152, tie_word_embeddings=True, **sizes, **heads)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    process = multiprocessing.get_context("spawn").Process(target=weigh, args=(str(tmp_path),))
    process.start()
    process.join()
    assert process.exitcode == 0
