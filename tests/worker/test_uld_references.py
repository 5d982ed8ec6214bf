"""ULD, GOLD, MiniLLM and Tinker's advantages against the numbers that those libraries computed."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from tinsmith_worker.engine.alignment import common_groups
from tinsmith_worker.engine.distill_config import PGConfig, ULDConfig
from tinsmith_worker.engine.divergence import Measure, diverge
from tinsmith_worker.engine.lessons import Pupil
from tinsmith_worker.engine.losses import LOSSES
from tinsmith_worker.engine.policy_lesson import advantages_of
from tinsmith_worker.engine.readings import Group, Reading, Teacher
from tinsmith_worker.engine.taught import Taught
from tinsmith_worker.engine.uld_lesson import Names, ULDLesson
from torch import Tensor

REFERENCES = json.loads((Path(__file__).parent / "data/distill_references.json").read_text())
# The completion "abcdef": the student spells ab|c|def at 3 to 5, the teacher a|b|cd|ef at 4 to 7.
STUDENT, TEACHER = [1, 2, 3, 0, 1, 2], [1, 2, 3, 4, 5, 6, 7, 8]
STUDENT_ENDS, TEACHER_ENDS = [2, 3, 6], [1, 2, 4, 6]
COMMON = "cdefg"  # student's ids 2 to 6, teacher's 0 to 4


class Given:
    """Stands where the teacher's passes do: logits that are given."""

    def __init__(self, reading: Reading, logits: Tensor) -> None:
        self._rows, self._logits = torch.from_numpy(reading.rows), logits
        self.starts = np.array([0, reading.rows.size])

    def logits(self, teacher: int, lines: Any) -> Tensor:
        return self._logits[self._rows[torch.from_numpy(lines)]]


def gold_logits() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    student = torch.randn(1, 6, 7, generator=generator) * 2
    return student[0], torch.randn(1, 8, 9, generator=generator)[0] * 2


def lesson_of(config: ULDConfig, *, positional: bool = False) -> tuple[ULDLesson, Tensor]:
    student, teacher = gold_logits()
    if positional:
        stretches = [(k, k + 1, k, k + 1) for k in range(3)]
    else:
        stretches = [tuple(one) for one in common_groups(STUDENT_ENDS, TEACHER_ENDS)]
    later, line, rows, targets, groups = config.merge == "observed", 0, [], [], []
    for s0, s1, t0, t1 in stretches:
        tokens = np.arange(4 + t0, 4 + t1)
        rows.append(tokens if later else tokens - 1)
        targets.append(np.array(TEACHER)[tokens])
        groups.append(Group(2 + s0, 2 + s1, line, line + tokens.size))
        line += tokens.size
    reading = Reading(
        cast(Teacher, object()),
        np.array(TEACHER, np.int32),
        np.concatenate(rows),
        np.concatenate(targets),
        np.full(6, -1),
        tuple(groups),
    )
    weights = torch.tensor([0, 0, 1, 1, 1, 0.0]) / (3 if positional else 2)
    pupil = Pupil(weights, torch.tensor([*STUDENT[1:], 0]), None, [reading], np.array([0, 6]))
    names = {id(reading.teacher): Names(torch.arange(2, 7), torch.arange(5))}
    taught = cast(Taught, Given(reading, teacher))
    return ULDLesson(config, pupil, taught, names if config.hybrid else {}), student


def loss_of(lesson: ULDLesson, student: Tensor) -> tuple[float, Tensor]:
    into, every = torch.zeros_like(student), np.arange(6)
    logprobs = student.log_softmax(-1).gather(1, lesson.pupil.targets[:, None])[:, 0]
    lesson.look(student, every, every, logprobs, into)
    return float(lesson.loss(logprobs)), into


def gold_config(row: dict[str, Any]) -> ULDConfig:
    if not row["hybrid"]:
        return ULDConfig(teacher="t", mode="gold", merge=row["merge"], hybrid=0.0)
    w_matched, w_unmatched = (
        -1.0 if row[k] is None else row[k] for k in ("w_matched", "w_unmatched")
    )
    return ULDConfig(
        teacher="t",
        mode="gold",
        merge=row["merge"],
        beta=row["beta"],
        w_matched=w_matched,
        w_unmatched=w_unmatched,
    )


ROWS = [row for row in REFERENCES["gold_uld"] if "hybrid" in row]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['merge']}-{row.get('beta')}")
def test_groups_as_in_gold(row: dict[str, Any]) -> None:
    found, gradient = loss_of(*lesson_of(gold_config(row)))
    assert found == pytest.approx(row["trl"], abs=1e-5)
    if "grad_rows_nonzero" in row:
        there = (gradient.abs().sum(-1) > 1e-9).nonzero().flatten().tolist()
        assert there == row["grad_rows_nonzero"]


@pytest.mark.parametrize("merge", ["bayesian", "observed"])
@pytest.mark.parametrize("hybrid", [0.0, 1.0])
def test_gradients_as_in_gold(merge: str, hybrid: float) -> None:
    gold = pytest.importorskip("trl.experimental.gold.gold_trainer")
    from types import SimpleNamespace

    class Tokenizer:
        def __init__(self, tokens: str) -> None:
            self._vocab = {token: index for index, token in enumerate(tokens)}

        def get_vocab(self) -> dict[str, int]:
            return self._vocab

    options = SimpleNamespace(
        uld_crossentropy_weight=0.0,
        uld_distillation_weight=1.0,
        uld_student_temperature=1.0,
        uld_teacher_temperature=1.0,
        uld_skip_student_eos=False,
        uld_skip_teacher_eos=False,
        use_extended_uld=True,
        uld_token_merge_strategy=merge,
        uld_use_hybrid_loss=bool(hybrid),
        uld_hybrid_matched_weight=None,
        uld_hybrid_unmatched_weight=None,
        beta=0.5,
    )
    theirs = gold.ULDLoss(options, Tokenizer("abcdefg"), Tokenizer("cdefghijk"))
    student, teacher = gold_logits()
    leaf = student[None].clone().requires_grad_()
    labels, answers = torch.tensor([STUDENT]), torch.tensor([TEACHER])
    ours, other = labels.clone(), answers.clone()
    ours[:, :3] = other[:, :4] = -100
    spans, spelled = torch.zeros(1, 6, 2, dtype=torch.long), torch.zeros(1, 8, 2, dtype=torch.long)
    spans[0, 3:] = torch.tensor([[0, 2], [2, 3], [3, 6]])
    spelled[0, 4:] = torch.tensor([[0, 1], [1, 2], [2, 4], [4, 6]])
    theirs(leaf, teacher[None], ours, other, labels, answers, spans, spelled).backward()
    config = ULDConfig(teacher="t", mode="gold", merge=merge, hybrid=hybrid, beta=0.5)
    _, gradient = loss_of(*lesson_of(config))
    torch.testing.assert_close(gradient, leaf.grad[0], atol=1e-6, rtol=1e-4)


def test_positions_and_cross_entropy_as_in_gold() -> None:
    by_name = {row["merge"]: row["trl"] for row in REFERENCES["gold_uld"]}
    config = ULDConfig(teacher="t", mode="uld", merge="observed", hybrid=0.0)
    found, _ = loss_of(*lesson_of(config, positional=True))
    assert found == pytest.approx(by_name["positional(use_extended_uld=False)"], abs=1e-5)
    mixed = ULDConfig(teacher="t", mode="gold", merge="observed", hybrid=0.0, ce_weight=1 / 3)
    found, _ = loss_of(*lesson_of(mixed))  # weights of 1/2: their mean over 3 is 2/3 of the sum
    assert found == pytest.approx(by_name["observed + 0.5*CE"], abs=1e-5)


def test_cuts_are_those_of_gold() -> None:
    groups = common_groups(STUDENT_ENDS, TEACHER_ENDS)
    found = [
        [list(range(one.s0, one.s1)) for one in groups],
        [list(range(one.t0, one.t1)) for one in groups],
    ]
    assert found == REFERENCES["gold_alignment_groups"]


def test_merged_mass_is_the_chain_rules() -> None:
    generator = torch.Generator().manual_seed(3)
    p = torch.randn(3, 5, generator=generator).softmax(-1)
    lesson, _ = lesson_of(ULDConfig(teacher="t", mode="gold"))
    merged = lesson._merged(p, [np.array([4, 1, 2])])
    expected = REFERENCES["gold_chain_rule"]["prod_of_actual"]
    assert float(merged[0, 2]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("row", REFERENCES["minillm"]["advantage"], ids=str)
def test_returns_as_minillm_means_them(row: dict[str, Any]) -> None:
    told = REFERENCES["minillm"]
    student, teacher = (torch.tensor(told[f"{who}_logprobs"]) for who in ("student", "teacher"))
    scored = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)
    config = PGConfig(
        teacher="t", gamma=row["gamma"], length_norm=float(row["length_normalization"])
    )
    for index in range(2):
        found = advantages_of(teacher[index] - student[index], scored[index], config)
        np.testing.assert_allclose(found.numpy(), row[f"svc_row{index}"], atol=2e-6)


def test_minillms_single_step() -> None:
    generator = torch.Generator().manual_seed(6)
    torch.rand(2, 5, generator=generator), torch.rand(2, 5, generator=generator)
    student, teacher = (torch.randn(2, 5, 11, generator=generator) for _ in range(2))
    scored = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)
    nothing = torch.zeros(8, dtype=torch.long)
    found = diverge(student[scored], teacher[scored], nothing, Measure()).divergence.mean()
    expected = REFERENCES["minillm"]["single_step"]["svc_full_vocab_rkl_mean"]
    assert float(found) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("row", REFERENCES["tinker_reverse_kl"]["rows"], ids=str)
def test_advantages_and_losses_as_in_the_cookbook(row: dict[str, Any]) -> None:
    told = REFERENCES["tinker_reverse_kl"]
    drawn, theirs, learner = (
        torch.tensor(told[f"{who}_logprobs"]) for who in ("sampler", "teacher", "learner")
    )
    scored = torch.tensor([0, 0, 1, 1, 1, 1], dtype=torch.bool)
    config = PGConfig(teacher="t", kl_coef=row["kl_penalty_coef"], gamma=row["kl_discount_factor"])
    found = advantages_of(theirs - drawn, scored, config)
    np.testing.assert_allclose(found[2:].numpy(), row["advantages"][2:], atol=3e-6)
    assert not found[:2].any()  # the cookbook's own are not 0 there, and train on the prompt
    if config.gamma:
        return
    inputs = {"logprobs": drawn, "advantages": found}
    for name in ("importance_sampling", "ppo", "cispo"):
        loss = LOSSES[name]
        clips = (
            {}
            if name == "importance_sampling"
            else {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
        )
        value = loss.function(learner, inputs, loss.config(**clips))
        assert float(value) == pytest.approx(row[f"{name}_sum"], abs=2e-5)


def test_the_cookbooks_reverse_kl_over_the_teachers_support() -> None:
    generator = torch.Generator().manual_seed(4)
    for _ in range(2):
        torch.rand(6, generator=generator)
    torch.randn(6, generator=generator)
    student, teacher = (torch.randn(6, 11, generator=generator) for _ in range(2))
    measure = Measure(beta=1.0, top_k=4, support="teacher", tail=False)
    found = diverge(student[2:], teacher[2:], torch.zeros(4, dtype=torch.long), measure)
    expected = REFERENCES["cookbook_sdft_reverse_kl"]["exact"]
    assert float(found.divergence.sum()) == pytest.approx(expected, abs=1e-5)
