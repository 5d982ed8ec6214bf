"""Many runs share a worker that holds few: each goes on as if it were alone."""

import pytest
import torch

from tests.worker.test_worker_loop import House, house, models, state_row, url  # noqa: F401

HELD = 8
STEPS = 3


@pytest.mark.parametrize("many", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_more_runs_than_a_worker_holds(house: House, many: int) -> None:  # noqa: F811
    worker = house.worker(max_resident_runs=HELD, snapshot_steps=2)
    names = [f"run-{index}" for index in range(many)]
    house.create(*names, "alone")
    for step in range(STEPS):
        for name in names:
            house.learn(name, 2 * step + 1, 12, seed=hash_of(name) + step)
            house.step(name, 2 * step + 2)
        last = 2 * step + 2
        for name in names:
            [told] = house.until(worker, f"{name}:{last}")
            assert not told.failed
    house.until(worker, "alone:0")
    for name in (names[0], names[many // 2], names[-1]):
        twin = f"{name}-twin"
        house.create(twin)
        for step in range(STEPS):
            house.learn(twin, 2 * step + 1, 12, seed=hash_of(name) + step)
            house.step(twin, 2 * step + 2)
        house.until(worker, f"{twin}:{2 * STEPS}")
        expected = state_row(worker, twin)
        house.until(worker, house.learn(name, 2 * STEPS + 1, 12))
        assert torch.equal(state_row(worker, name), expected)
        assert len(worker._runs._resident) <= HELD


def hash_of(name: str) -> int:
    """A seed of its own for each run."""
    return 10 * int(name.removeprefix("run-"))
