"""Draws against their definition: the same distribution, written once more in numpy."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tinsmith_worker.engine.sampling import _SPAN, _WINDOW, Draw, draw, uniform

LARGEST = 1 - 2.0**-53
FloatArray = npt.NDArray[np.float64]


def reference(logits: FloatArray, temperature: float, top_k: int, top_p: float) -> FloatArray:
    """Probabilities: temperature, then the top k, then the smallest set that holds top_p of those."""
    scaled = logits / temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    if top_k > 0:
        probs[order[top_k:]] = 0
        probs /= probs.sum()
    if top_p < 1:
        before = np.cumsum(probs[order]) - probs[order]
        probs[order[before >= top_p]] = 0
        probs /= probs.sum()
    return probs


def chi_square(counts: FloatArray, expected: FloatArray) -> float:
    """In standard deviations; cells that expect fewer than 5 are one cell."""
    large = expected >= 5
    seen = np.append(counts[large], counts[~large].sum())
    wanted = np.append(expected[large], max(expected[~large].sum(), 1e-9))
    if wanted[-1] < 5:
        seen, wanted = seen[:-1], wanted[:-1]
    freedom = max(len(wanted) - 1, 1)
    return float((((seen - wanted) ** 2 / wanted).sum() - freedom) / np.sqrt(2 * freedom))


@pytest.mark.parametrize(
    ("size", "temperature", "top_k", "top_p"),
    [
        (50, 1.0, -1, 1.0),
        (700, 1.0, -1, 1.0),  # several spans, the last not full
        (700, 0.6, 0, 1.0),
        (50, 1.5, 7, 1.0),
        (50, 1.0, -1, 0.7),
        (50, 0.8, 10, 0.6),
        (50, 3.0, 7, 0.6),  # the seven together have less than 0.6 of all
        (3000, 3.0, -1, 0.95),  # more than a window of candidates
        (3000, 3.0, 2000, 1.0),
        (3000, 3.0, 2000, 0.9),
        (50, 1.0, 500, 0.999),
    ],
)
def test_the_distribution_is_the_one_asked_for(
    size: int, temperature: float, top_k: int, top_p: float
) -> None:
    logits = np.random.default_rng(size).normal(scale=2, size=size).astype(np.float32)
    probs = reference(logits.astype(np.float64), temperature, top_k, top_p)
    count, at_once = 6000, 500
    seen = np.zeros(size)
    for start in range(0, count, at_once):
        draws = [
            Draw(temperature, top_k, top_p, uniform(11, 3, position))
            for position in range(start, start + at_once)
        ]
        tokens, logprobs, _ = draw(torch.from_numpy(logits).expand(at_once, -1), draws)
        seen += np.bincount(tokens, minlength=size)
    assert (seen[probs == 0] == 0).all()
    assert chi_square(seen, probs * count) < 5
    whole = reference(logits.astype(np.float64), temperature, -1, 1.0)
    np.testing.assert_allclose(np.exp(logprobs), whole[tokens], rtol=1e-4)


@pytest.mark.parametrize("word", ["seed", "sample", "position"])
def test_uniform_is_uniform_along_each_of_its_words(word: str) -> None:
    base = {"seed": 7, "sample": 0, "position": 0}
    us = np.array([uniform(**(base | {word: value})) for value in range(4000)])
    assert ((us >= 0) & (us < 1)).all()
    counts = np.histogram(us, bins=40, range=(0, 1))[0]
    assert chi_square(counts.astype(float), np.full(40, 100.0)) < 5
    assert abs(np.corrcoef(us[:-1], us[1:])[0, 1]) < 0.06


def test_neighbouring_requests_have_nothing_in_common() -> None:
    cells = [(seed, sample, at) for seed in range(12) for sample in range(12) for at in range(12)]
    assert len({uniform(*cell) for cell in cells}) == len(cells)


@pytest.mark.parametrize("u", [0.0, 0.5, LARGEST])
@pytest.mark.parametrize("size", [5, _SPAN, _SPAN + 1, 3 * _SPAN])
@pytest.mark.parametrize("likely", ["first", "last", "middle", "two"])
def test_no_u_gives_a_token_that_cannot_be(u: float, size: int, likely: str) -> None:
    logits = torch.full((1, size), -1e4)
    places = {
        "first": [0],
        "last": [size - 1],
        "middle": [size // 2],
        "two": [1, size - 2],
    }[likely]
    logits[0, places] = 1.0
    for top_k, top_p in ((-1, 1.0), (4, 1.0), (-1, 0.99), (4, 0.5)):
        [token], [logprob], _ = draw(logits, [Draw(1.0, top_k, top_p, u)])
        assert token in places
        assert logprob > -1


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-200, 30, width=32), min_size=1, max_size=2 * _SPAN + 9),
    st.one_of(st.sampled_from([0.0, LARGEST, 0.5]), st.floats(0, LARGEST)),
    st.sampled_from([1e-40, 1e-6, 0.3, 1.0, 5.0, 1e6]),
    st.sampled_from([-1, 0, 1, 3, 10_000]),
    st.sampled_from([1e-9, 0.5, 0.999, 1.0]),
)
def test_any_draw_is_a_possible_token(
    logits: list[float], u: float, temperature: float, top_k: int, top_p: float
) -> None:
    row = torch.tensor([logits])
    [token], [logprob], all_SV = draw(row, [Draw(temperature, top_k, top_p, u)])
    assert 0 <= token < len(logits)
    assert np.isfinite(logprob)
    assert all_SV[0, token] == logprob
    assert np.exp(logprob) > 0
    if top_k == 1 or top_p < 1e-6:
        assert logprob == all_SV.max()


def test_a_cold_draw_is_the_likeliest_and_its_logprob_is_unscaled() -> None:
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(1))
    for temperature in (0.0, 1e-45, 1e-20, 1e-6):
        tokens, logprobs, _ = draw(logits, [Draw(temperature, -1, 1.0, 0.99)] * 4)
        assert tokens == logits.argmax(-1).tolist()
        expected = logits.log_softmax(-1)[range(4), tokens] if temperature == 0 else torch.zeros(4)
        torch.testing.assert_close(torch.tensor(logprobs), expected)


def test_each_row_is_drawn_as_it_would_be_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(40, 1500, generator=generator) * 3
    draws = [
        Draw(
            (0.0, 1.0, 0.7)[row % 3],
            (-1, 5, _WINDOW + 100)[row % 4 % 3],
            (1.0, 0.9)[row % 2],
            uniform(row, 0, 0),
        )
        for row in range(40)
    ]
    tokens, logprobs, _ = draw(logits, draws)
    for row, one in enumerate(draws):
        [token], [logprob], _ = draw(logits[row : row + 1], [one])
        assert (token, logprob) == (tokens[row], logprobs[row])
