"""Each loss by hand: ratio, advantage -> what is kept."""

import math

import numpy as np
import pytest
import torch
from tinsmith_worker.engine import losses
from tinsmith_worker.engine.values import Datum, InvalidInput
from torch import Tensor


def loss(
    name: str, current: Tensor, config: dict[str, float | str] | None = None, **inputs: list[float]
) -> Tensor:
    tensors = {key: torch.tensor(value) for key, value in inputs.items()}
    return losses.find(name).function(current, tensors, losses.configure(name, config or {}))


RATIOS = torch.tensor([2.0, 0.5, 1.1]).log()
RL = {"logprobs": [0.0, 0.0, 0.0], "advantages": [1.0, -1.0, 3.0]}


def test_cross_entropy_is_a_weighted_sum() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -4.0])
    assert loss("cross_entropy", logprobs, weights=[1.0, -0.5, 0.0]) == 1.0 - 1.0
    two = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]])
    assert loss("cross_entropy", two, weights=[[1.0, 0.0], [0.5, 0.25]]) == 1.0 + 1.5 + 1.0  # type: ignore[list-item]


def test_importance_sampling() -> None:
    assert loss("importance_sampling", RATIOS, **RL).item() == pytest.approx(-(2.0 - 0.5 + 3.3))


def test_ppo_keeps_the_pessimistic_branch() -> None:
    # 2.0, +1 -> 1.2 (clipped)   0.5, -1 -> -0.8 (clipped)   1.1, +3 -> 3.3
    assert loss("ppo", RATIOS, **RL).item() == pytest.approx(-(1.2 - 0.8 + 3.3))


def test_clip_thresholds_per_token_win_over_the_config() -> None:
    bounds = {"clip_low_threshold": [0.0, 0.0, 0.0], "clip_high_threshold": [1.5, 1.5, 1.0]}
    found = loss("ppo", RATIOS, {"clip_high_threshold": 9.0}, **RL, **bounds)
    assert found.item() == pytest.approx(-(1.5 - 0.5 + 3.0))


def test_cispo_weighs_the_logprob_and_stops_the_gradient_of_the_ratio() -> None:
    logprobs = RATIOS.clone().requires_grad_()
    found = loss("cispo", logprobs, {"clip_high_threshold": 1.5}, **RL)
    kept = torch.tensor([1.5 * 1.0, 0.5 * -1.0, 1.1 * 3.0])
    assert found.item() == pytest.approx(-(kept * RATIOS).sum().item())
    found.backward()
    torch.testing.assert_close(logprobs.grad, -kept)


def test_dro() -> None:
    squares = math.log(2.0) ** 2 + math.log(0.5) ** 2 + math.log(1.1) ** 2
    linear = math.log(2.0) - math.log(0.5) + 3 * math.log(1.1)
    found = loss("dro", RATIOS, {"beta": 0.3}, **RL).item()
    assert found == pytest.approx(-(linear - 0.15 * squares), rel=1e-5)


def test_gspo_clips_the_ratio_of_the_whole_sequence() -> None:
    # mean log ratio over the first two = 0 -> s = 1; over all three = log(1.1)/3
    masked = loss("gspo", RATIOS, **RL, sequence_ratio_mask=[1.0, 1.0, 0.0])
    assert masked.item() == pytest.approx(-3.0)
    s = math.exp(math.log(1.1) / 3)
    assert loss("gspo", RATIOS, **RL).item() == pytest.approx(-3 * s, rel=1e-5)


def test_stable_reinforce_truncates_the_ratio_and_pulls_towards_what_was_sampled() -> None:
    # ratios 4, 0.5 and 9, of which the last was not sampled: kept weights 2 A, 0.5 A and none
    logprobs = torch.tensor([4.0, 0.5, 9.0]).log().requires_grad_()
    given = {"logprobs": [0.0] * 3, "advantages": [1.0, -1.0, 0.0], "sampled": [1.0, 1.0, 0.0]}
    found = loss("stable_reinforce", logprobs, {"kl_coeff": 0.1}, **given)
    squares = math.log(4.0) ** 2 + math.log(0.5) ** 2
    assert found.item() == pytest.approx(
        -(2 * math.log(4.0) - 0.5 * math.log(0.5)) + 0.05 * squares
    )
    found.backward()
    expected = torch.tensor([-2 + 0.1 * math.log(4.0), 0.5 + 0.1 * math.log(0.5), 0.0])
    torch.testing.assert_close(logprobs.grad, expected)


def test_all_four_agree_in_gradient_at_ratio_one() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -0.5])
    gradients = []
    for name in ("importance_sampling", "ppo", "cispo"):
        leaf = logprobs.clone().requires_grad_()
        loss(name, leaf, logprobs=logprobs.tolist(), advantages=[1.0, -1.0, 3.0]).backward()
        gradients.append(leaf.grad)
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.tensor([-1.0, 1.0, -3.0]))


def test_a_token_without_advantage_cannot_poison_the_gradient() -> None:
    leaf = torch.tensor([0.0, -1.0]).requires_grad_()
    found = loss("importance_sampling", leaf, logprobs=[-1000.0, -1.0], advantages=[0.0, 2.0])
    found.backward()
    assert found.item() == -2.0
    torch.testing.assert_close(leaf.grad, torch.tensor([0.0, -2.0]))


@pytest.mark.parametrize(
    ("name", "config", "field"),
    [
        ("nope", {}, "loss_fn"),
        ("ppo", {"clip_low": 0.9}, "clip_low"),
        ("ppo", {"clip_low_threshold": float("nan")}, "clip_low_threshold"),
        ("ppo", {"clip_low_threshold": "low"}, "clip_low_threshold"),
        ("cross_entropy", {"beta": 1.0}, "beta"),
    ],
)
def test_a_wrong_config_is_refused_by_name(
    name: str, config: dict[str, float | str], field: str
) -> None:
    with pytest.raises(InvalidInput, match=field):
        losses.configure(name, config)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"weights": None}, "weights"),
        ({"weights": np.ones(2, np.float32)}, "weights"),
        ({"weights": np.full(3, np.nan, np.float32)}, "weights"),
        ({"target_tokens": np.array([1, 2, 99])}, "target_tokens"),
        ({"target_tokens": np.ones(3, np.float32)}, "target_tokens"),
        ({"advantages": np.ones(3, np.float32)}, "advantages"),
    ],
)
def test_a_wrong_datum_is_refused_by_name(change: dict[str, object], field: str) -> None:
    inputs = {"target_tokens": np.array([1, 2, 3]), "weights": np.ones(3, np.float32)} | change
    given = {key: value for key, value in inputs.items() if value is not None}
    one = Datum(np.array([4, 5, 6], np.int32), given)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=rf"data\[0\].*{field}"):
        losses.validate([one], "cross_entropy", vocab_size=10, max_context=8)
