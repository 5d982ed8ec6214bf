"""The divergence and its gradient against the numbers of TRL and tinker-cookbook, and against themselves.

`data/distill_references.json` was computed by those libraries' own functions (their versions stand in
it) from tensors that a seed makes again here.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tinsmith_worker.engine.divergence import Measure, diverge
from torch import Tensor
from torch.testing import assert_close

REFERENCES = json.loads((Path(__file__).parent / "data/distill_references.json").read_text())


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Student and teacher logits [2, 5, 11], and which of the 10 tokens count."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(2, 5, 11, generator=generator) * 2 for _ in range(2))
    counts = torch.ones(2, 5, dtype=torch.bool)
    counts[0, :1] = counts[1, :2] = counts[1, -1:] = False
    return student, teacher, counts


def scored() -> tuple[Tensor, Tensor]:
    student, teacher, counts = inputs()
    return student[counts], teacher[counts]


def measure_of(row: dict[str, Any]) -> Measure:
    tau = row.get("temperature", 1.0)
    return Measure(beta=row["beta"], temperature=tau, teacher_temperature=tau)


NO_TARGETS = torch.zeros(6, dtype=torch.long)


def found(student: Tensor, teacher: Tensor, measure: Measure) -> Tensor:
    targets = torch.zeros(student.shape[0], dtype=torch.long)
    return diverge(student, teacher, targets, measure).divergence


def row_name(row: dict[str, Any]) -> str:
    return ",".join(f"{key}={row[key]}" for key in list(row)[:3])


@pytest.mark.parametrize("row", REFERENCES["gkd_generalized_jsd"]["rows"], ids=row_name)
def test_the_whole_vocabulary_as_in_gkd(row: dict[str, Any]) -> None:
    student, teacher = scored()
    one = diverge(student, teacher, NO_TARGETS, measure_of(row))
    assert one.divergence.mean() == pytest.approx(row["trl_batchmean"], abs=1e-5)
    assert one.divergence.sum() == pytest.approx(row["svc_sum"], abs=1e-4)
    assert one.gradient is not None
    assert one.gradient.norm() / 6 == pytest.approx(row["grad_norm"], abs=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("tau", [1.0, 0.9, 2.0])
def test_the_gradient_is_that_of_trl(beta: float, tau: float) -> None:
    gkd = pytest.importorskip("trl.experimental.gkd").GKDTrainer
    student, teacher = scored()
    leaf = student[None].clone().requires_grad_()
    gkd.generalized_jsd_loss(
        leaf, teacher[None], beta=beta, temperature=tau, reduction="sum"
    ).backward()
    measure = Measure(beta=beta, temperature=tau, teacher_temperature=tau)
    one = diverge(student, teacher, NO_TARGETS, measure)
    assert one.gradient is not None
    assert_close(one.gradient, leaf.grad[0], atol=1e-6, rtol=1e-5)


def test_num_items_are_weights() -> None:
    student, teacher = scored()
    total = found(student, teacher, Measure(beta=0.5)).sum() / 100
    assert total == pytest.approx(REFERENCES["gkd_num_items_in_batch_100"], abs=1e-6)


def test_the_ends_are_the_limits_of_the_scaled_middle() -> None:
    student, teacher = scored()
    ends = REFERENCES["gkd_endpoints"]
    for beta, key in ((1e-3, "jsd_1e3_over_beta"), (0.999, "jsd_999_over_1mbeta")):
        value = found(student, teacher, Measure(beta=beta, scale=1e3)).mean()
        assert value == pytest.approx(ends[key], abs=1e-3)
    near = found(student.double(), teacher.double(), Measure(beta=1 - 1e-4, scale=1e4)).mean()
    assert near == pytest.approx(ends["rkl"], rel=1e-2)


@pytest.mark.parametrize("row", REFERENCES["distillation_trainer_chunked"]["rows"], ids=row_name)
def test_from_hidden_states_as_in_distillation_trainer(row: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(1)
    hs, ht = torch.randn(2, 5, 6, generator=generator), torch.randn(2, 5, 8, generator=generator)
    ws, wt = torch.randn(11, 6, generator=generator), torch.randn(11, 8, generator=generator)
    counts = inputs()[2]
    one = diverge((hs @ ws.T)[counts], (ht @ wt.T)[counts], NO_TARGETS, measure_of(row))
    assert one.divergence.mean() == pytest.approx(row["trl_chunked"], abs=1e-5)
    assert one.entropy.mean() == pytest.approx(row["entropy_mean"], abs=1e-5)


@pytest.mark.parametrize("row", REFERENCES["topk_tail_jsd"], ids=row_name)
def test_a_support_with_and_without_its_tail(row: dict[str, Any]) -> None:
    student, teacher = scored()
    measure = Measure(beta=row["beta"], top_k=row["top_k"], tail=row["add_tail"])
    assert found(student, teacher, measure).mean() == pytest.approx(row["trl"], abs=1e-5)


@pytest.mark.parametrize("row", REFERENCES["sdft_topk_student_support"], ids=row_name)
def test_the_students_support_as_in_sdft(row: dict[str, Any]) -> None:
    student, teacher = scored()
    measure = Measure(beta=row["alpha"], top_k=3, support="student", tail=row["add_tail"])
    assert found(student, teacher, measure).mean() == pytest.approx(row["mean_over_mask"], abs=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_whole_vocabulary_as_in_sdft(beta: float) -> None:
    student, teacher = scored()
    expected = REFERENCES["sdft_full"][str(beta)]
    assert found(student, teacher, Measure(beta=beta)).mean() == pytest.approx(expected, abs=1e-5)


MEASURES = [
    Measure(beta=0.3, temperature=0.7, teacher_temperature=1.3, scale=2.0),
    Measure(beta=0.0, top_k=3),
    Measure(beta=1.0, top_k=3, tail=False),
    Measure(beta=0.5, top_k=4),
    Measure(beta=0.5, top_k=4, tail=False, temperature=1.5),
    Measure(beta=0.5, top_k=1, support="sampled"),
    Measure(beta=0.2, top_k=3, support="teacher"),
]


@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_the_gradient_is_the_slope(measure: Measure) -> None:
    generator = torch.Generator().manual_seed(7)
    student, teacher = (torch.randn(3, 9, generator=generator) * 2 for _ in range(2))
    targets = torch.tensor([1, 4, 8])
    one = diverge(student, teacher, targets, measure)
    assert one.gradient is not None
    for row, column in [(0, 0), (0, 1), (1, 4), (2, 8), (2, 3), (1, 7)]:
        step = torch.zeros_like(student)
        step[row, column] = 1e-3
        up, down = (
            diverge(student + sign * step, teacher, targets, measure).divergence.double().sum()
            for sign in (1, -1)
        )
        assert float(one.gradient[row, column]) == pytest.approx(float(up - down) / 2e-3, abs=2e-3)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("tail", [True, False])
def test_the_largest_support_is_the_whole_vocabulary(beta: float, tail: bool) -> None:
    student, teacher = scored()
    every = Measure(beta=beta, top_k=11, tail=tail)
    whole = diverge(student, teacher, NO_TARGETS, replace(every, top_k=0))
    one = diverge(student, teacher, NO_TARGETS, every)
    assert_close(one.divergence, whole.divergence, atol=1e-5, rtol=1e-5)
    assert whole.gradient is not None
    assert_close(one.gradient, whole.gradient, atol=1e-5, rtol=1e-4)
    assert_close(one.student_mass, torch.ones(6))


def test_ids_that_only_one_side_has_are_left_out() -> None:
    student, teacher = scored()
    padded = torch.cat([student, torch.full((6, 3), 5.0)], 1)
    one = diverge(padded, teacher, NO_TARGETS, Measure(beta=0.5))
    whole = diverge(student, teacher, NO_TARGETS, Measure(beta=0.5))
    assert_close(one.divergence, whole.divergence)
    assert one.gradient is not None
    assert not one.gradient[:, 11:].any()
