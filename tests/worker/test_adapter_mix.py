"""Adapters in common products give each row what its own adapter gives it, and nothing of another's."""

from pathlib import Path

import pytest
import torch
from tinsmith_worker.engine.adapter import Adapter, Gradient
from tinsmith_worker.engine.adapter_mix import AdapterMixes
from tinsmith_worker.engine.base_model import load
from tinsmith_worker.engine.optimizer import RunState
from tinsmith_worker.engine.packed import Segment
from tinsmith_worker.engine.training import forward_backward

from tests.worker.test_trainer import GROUP, work
from tests.worker.tiny_models import save


def test_a_mix_is_each_adapter_by_itself(tmp_path: Path) -> None:
    model = load(str(save("llama", tmp_path)), name="tiny")
    adapters = [Adapter.create(model, rank=rank, seed=rank) for rank in (2, 8, 3)]
    for adapter in adapters:
        adapter.row += 0.1 * torch.randn(
            adapter.row.shape, generator=torch.Generator().manual_seed(1)
        )
        adapter.changed()
    tokens = [[5, 9], [7, 3, 4], [8], [11, 2]]
    segments = [Segment(t, a) for t, a in zip(tokens, [*adapters, None], strict=True)]
    with torch.no_grad():
        mixed, apart = model.new_pass(segments), model.new_pass(segments)
        mixed.mixes, apart.mixes = AdapterMixes(), None
        assert mixed.mixed is not None
        torch.testing.assert_close(model.hidden(mixed), model.hidden(apart), atol=1e-5, rtol=1e-4)


def test_a_gradient_that_is_not_finite_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(str(save("llama", tmp_path)), name="tiny")
    run = RunState(Adapter.create(model, rank=2, seed=0))
    monkeypatch.setattr(Gradient, "finish", lambda self: torch.full_like(self.row, torch.inf))
    [outcome] = forward_backward(model, [work(run, GROUP)], max_pass_tokens=512)
    assert outcome.error == "data: the gradient is not finite; nothing of it was kept."
    assert not run.has_gradient
