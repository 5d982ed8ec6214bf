"""Stretches of equal text between tokenizers, and what a token's log-ratio is there."""

from types import SimpleNamespace
from typing import Any

import numpy as np
from tinsmith import types
from tinsmith.distill.alignment import stretches
from tinsmith.distill.plots import draw
from tinsmith.distill.policy import by_stretch
from tinsmith.distill.rollout import Rollout
from tinsmith.distill.served import ServedSignal


class Pieces:
    """A tokenizer whose tokens are pieces of bytes."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    def decode(self, tokens: list[int], **_: Any) -> str:
        return b"".join(self.pieces[token] for token in tokens).decode(errors="replace")


def test_they_are_cut_where_both_end() -> None:
    ours, theirs = Pieces(b"ab", b"c", b"de", b"f"), Pieces(b"a", b"bc", b"d", b"ef")
    found = stretches(ours, [0, 1, 2, 3], theirs, [0, 1, 2, 3])
    assert found == [(range(2), range(2)), (range(2, 4), range(2, 4))]


def test_half_a_character_is_no_end() -> None:
    smile = "é".encode()
    ours, theirs = Pieces(smile[:1], smile[1:], b"x"), Pieces(smile, b"x")
    found = stretches(ours, [0, 1, 2], theirs, [0, 1])
    assert found == [(range(2), range(1)), (range(2, 3), range(1, 2))]
    assert stretches(ours, [0], Pieces(smile[:1]), [0]) == []  # cut off: how much is not known


def test_the_ratio_of_a_stretch_is_that_of_its_text_and_sums_to_the_sequences() -> None:
    class Student:
        tokenizer = Pieces(b"ab", b"c", b"de", b"f")

    theirs = Pieces(b"a", b"bc", b"d", b"ef")
    lp = np.array([-1.0, -2.0, -3.0, -4.0], np.float32)
    lq = np.array([-0.5, -0.5, -1.0, -1.0], np.float32)
    rollout = Rollout([9], [0, 1, 2, 3], lp.tolist())
    found = by_stretch(rollout, [0, 1, 2, 3], Student(), theirs, lp, lq)  # type: ignore[arg-type]
    assert found.tolist() == [2.0, 2.0, 5.0, 5.0]  # -1 - -3, and -2 - -7
    assert found[0] + found[2] == lq.sum() - lp.sum()
    short = by_stretch(rollout, [0, 1, 2, 3], Student(), theirs, lp, lq[:3])  # type: ignore[arg-type]
    assert short.tolist() == [2.0, 2.0, 0.0, 0.0]


def test_a_plot_of_nothing_is_refused(tmp_path: Any) -> None:
    import pytest

    with pytest.raises(ValueError, match="none of divergence"):
        draw({"a": [{"step": 0, "student_tokens": 1}]}, tmp_path / "a.png")


def test_the_loss_between_vocabularies_is_told_what_the_teacher_reads() -> None:
    class Staff:
        spelled, members = "teacher", [0]

        def __getitem__(self, _: int) -> Any:
            return SimpleNamespace(
                same_tokens=True, sequence=lambda one: one.tokens, align=lambda one: None
            )

    student: Any = SimpleNamespace(types=types)
    rollout = Rollout([9, 8], [1, 2], [-0.5, -0.5])
    for loss, sent in (("x_distill_uld", True), ("x_distill_jsd", False)):
        staff: Any = Staff()
        [datum] = ServedSignal(None, student, staff, loss, {"mode": "gold"}).data([rollout])
        assert ("teacher_tokens" in datum.loss_fn_inputs) is sent
        assert datum.loss_fn_inputs["weights"].tolist() == [0.0, 0.5, 0.5]
