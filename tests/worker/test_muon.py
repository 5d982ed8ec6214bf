"""Muon's update is what its authors say: nearly orthogonal, of AdamW's size, from Nesterov's momentum."""

import pytest
import torch
from tinsmith_worker import checkpoint_files
from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.base_model import load as load_model
from tinsmith_worker.engine.muon import MuonParams, orthogonal
from tinsmith_worker.engine.optimizer import AdamParams, RunState, optim_step
from tinsmith_worker.engine.values import InvalidInput

from tests.worker.tiny_models import save


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_model(str(save("llama", tmp_path_factory.mktemp("llama"))), name="tiny")


def run_with_gradient(model: BaseModel, seed: int = 0) -> RunState:
    run = RunState(Adapter.create(model, rank=4, seed=1), "dimuon")
    torch.manual_seed(seed)
    run.add_gradient(torch.randn_like(run.adapter.row))
    return run


@pytest.mark.parametrize("shape", [(3, 4, 40), (2, 40, 4)], ids=["wide", "tall"])
def test_it_brings_singular_values_near_one_and_keeps_the_directions(
    shape: tuple[int, int, int],
) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    found = orthogonal(matrices)
    values = torch.linalg.svdvals(found)
    assert 0.6 < values.min() < values.max() < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    cosine = (found * (u @ v)).sum() / found.norm() / (u @ v).norm()
    assert cosine > 0.97
    assert torch.equal(orthogonal(torch.zeros(shape)), torch.zeros(shape))


def test_two_steps_are_the_formula_written_out(model: BaseModel) -> None:
    run, params = run_with_gradient(model), MuonParams(learning_rate=0.01, beta1=0.8)
    before = run.adapter.row.clone()
    first = run.gradient
    assert first is not None
    first = first.clone()
    optim_step(run, params)
    second = torch.randn_like(first)
    run.add_gradient(second.clone())
    optim_step(run, params)
    momentum = torch.zeros_like(first)
    for gradient in (first, second):
        momentum = 0.8 * momentum + 0.2 * gradient
        ahead = 0.2 * gradient + 0.8 * momentum
        for name, view in run.adapter.layout.tensors(before).items():
            matrix = run.adapter.layout.tensors(ahead)[name]
            scale = 0.2 * max(matrix.shape) ** 0.5
            view -= 0.01 * scale * orthogonal(matrix[None])[0]
    torch.testing.assert_close(run.adapter.row, before, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_clipped_as_a_whole(model: BaseModel) -> None:
    norm = optim_step(run_with_gradient(model), MuonParams(learning_rate=0.1, grad_clip_norm=1.0))
    assert norm["grad_norm"] > 1.0


def test_its_state_is_saved_and_goes_on_exactly(model: BaseModel) -> None:
    run, params = run_with_gradient(model), MuonParams(learning_rate=0.01)
    optim_step(run, params)
    twin = checkpoint_files.unpack(model, checkpoint_files.pack(run, "tiny", optimizer=True))
    assert (twin.optimizer, twin.steps) == ("dimuon", 1)
    for one in (run, twin):
        torch.manual_seed(5)
        one.add_gradient(torch.randn_like(one.adapter.row))
        optim_step(one, params)
    assert torch.equal(run.adapter.row, twin.adapter.row)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        (AdamParams(), "optimizer_params"),
        (MuonParams(learning_rate=-1.0), "learning_rate"),
        (MuonParams(learning_rate=0.1, beta1=1.0), "beta1"),
        (MuonParams(learning_rate=0.1, grad_clip_norm=float("nan")), "grad_clip_norm"),
    ],
)
def test_wrong_params_are_refused_by_field(
    model: BaseModel, params: AdamParams | MuonParams, field: str
) -> None:
    run = run_with_gradient(model)
    before = run.adapter.row.clone()
    with pytest.raises(InvalidInput, match=field):
        optim_step(run, params)
    assert torch.equal(run.adapter.row, before)
