"""A worker that dies under a distillation: its teachers are found again, and so are the weights."""

from typing import Any

import pytest
import tinker
from tinker import types

from tests.contract.conftest import Service
from tests.contract.test_distillation import client, data, new_run

__all__ = ["client"]


def taught(run: tinker.TrainingClient, teacher: str, steps: int) -> list[float]:
    """Each step's divergence from the teacher."""
    found = []
    for _ in range(steps):
        config: Any = {"teacher": teacher, "beta": 0.5}
        result = run.forward_backward(data(), "x_distill_jsd", config).result(120)
        run.optim_step(types.AdamParams(learning_rate=1e-2)).result(120)
        found.append(result.metrics["loss:sum"])
    return found


def test_a_killed_worker_changes_no_step(
    client: tinker.ServiceClient,
    service: Service,
) -> None:
    checkpoint = new_run(client, seed=9, steps=2).save_state("survivor").result(60).path
    runs = [new_run(client, seed=4, steps=1) for _ in range(2)]
    expected = taught(runs[0], checkpoint, 1) + taught(runs[0], "ema:0.2", 4)
    found = taught(runs[1], checkpoint, 1) + taught(runs[1], "ema:0.2", 2)
    service.processes["work"].kill()
    service.processes["work"].wait()
    service.start("work")
    found += taught(runs[1], "ema:0.2", 2)
    assert found == pytest.approx(expected, abs=1e-7)
    assert expected[-1] != expected[-2]
