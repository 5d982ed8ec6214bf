"""Each element-wise step against torch's autograd on the plain formula, compiled and not."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tinsmith_worker.engine import elementwise, kernels
from tinsmith_worker.engine.elementwise import Angles, RMSNorm
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


@pytest.fixture(params=["compiled", "torch"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(kernels, "_library", lambda: None)
    elif kernels._library() is None:
        pytest.skip("no compiler here")
    return str(request.param)


@pytest.fixture(params=list(DTYPES))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return DTYPES[str(request.param)]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return made.to(dtype).requires_grad_()


def close(found: Tensor | None, expected: Tensor | None, dtype: torch.dtype) -> None:
    assert found is not None
    assert expected is not None
    scale = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(
        found.detach().double(),
        expected.detach().double(),
        atol=TOLERANCE[dtype] * scale,
        rtol=TOLERANCE[dtype],
    )


def same_as(formula: Callable[..., Tensor], step: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Values and gradients, the formula's in float64."""
    dtype = inputs[0].dtype
    wide = [one.detach().double().requires_grad_() for one in inputs]
    expected, found = formula(*wide), step(*inputs)
    close(found, expected, dtype)
    back = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9))
    expected.backward(back.double())  # type: ignore[no-untyped-call]
    found.backward(back.to(dtype))  # type: ignore[no-untyped-call]
    for ours, theirs in zip(inputs, wide, strict=True):
        close(ours.grad, theirs.grad, dtype)


def plain_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("size", [7, 64, 100])
def test_rms_norm(how: str, dtype: torch.dtype, whole: bool, size: int) -> None:
    weight = 1 + 0.1 * random(size, seed=5).detach()
    norm = RMSNorm(weight, 1e-5, whole)
    same_as(lambda x: plain_norm(x, weight.double()), norm, random(5, size, dtype=dtype))


def test_a_sum_and_its_norm_are_one_node_with_two_ways_back(how: str, dtype: torch.dtype) -> None:
    weight = 1 + 0.1 * random(48, seed=5).detach()
    norm = RMSNorm(weight, 1e-5, whole=False)

    def both(x: Tensor, delta: Tensor) -> Tensor:
        return torch.cat(norm.after(x, delta), -1)

    def formula(x: Tensor, delta: Tensor) -> Tensor:
        return torch.cat([x + delta, plain_norm(x + delta, weight.double())], -1)

    same_as(formula, both, random(5, 48, dtype=dtype), random(5, 48, seed=1, dtype=dtype))


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_gates(how: str, dtype: torch.dtype, activation: str) -> None:
    def formula(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")) * up

    x = (3 * random(6, 2 * 37, dtype=dtype)).detach().requires_grad_()
    same_as(formula, lambda x: elementwise.gated(x, activation), x)


def angles(rows: int, size: int, dtype: torch.dtype) -> Angles:
    frequencies = 1e4 ** -(torch.arange(0, size, 2) / size)
    table = torch.arange(rows)[:, None] * 7 * frequencies
    table = torch.cat([table, table], -1)
    return Angles(table.cos().to(dtype), table.sin().to(dtype))


def turned(x: Tensor, table: Angles) -> Tensor:
    half = x.shape[-1] // 2
    crossed = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * table.cosines.double()[:, None] + crossed * table.sines.double()[:, None]


def test_rotation(how: str, dtype: torch.dtype) -> None:
    table = angles(5, 16, dtype)
    same_as(
        lambda x: turned(x, table),
        lambda x: elementwise.rotate(x, table),
        random(5, 3, 16, dtype=dtype),
    )


def test_splitting_and_rotating(how: str, dtype: torch.dtype) -> None:
    table = angles(5, 16, dtype)

    def formula(qkv: Tensor) -> Tensor:
        query, key, value = (one.unflatten(-1, (-1, 16)) for one in qkv.split([64, 32, 32], -1))
        return torch.cat([turned(query, table), turned(key, table), value], 1)

    def step(qkv: Tensor) -> Tensor:
        return torch.cat(elementwise.split_rotated(qkv, table, 4, 2), 1)

    same_as(formula, step, random(5, 128, dtype=dtype))


def test_log_sum_exp_also_of_impossible_and_of_huge_logits(how: str, dtype: torch.dtype) -> None:
    logits = (4 * random(4, 1003, dtype=dtype)).detach()
    logits[1, ::2] = -torch.inf
    logits[2] *= 1e4
    found = elementwise.logsumexp(logits)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found.double(), logits.double().logsumexp(-1), atol=1e-5, rtol=1e-6)
    assert elementwise.logsumexp(torch.full((1, 40), torch.nan, dtype=dtype)).isnan().all()


def test_a_total_does_not_depend_on_how_the_logits_are_held(how: str) -> None:
    logits = (3 * random(3, 5000, dtype=torch.bfloat16)).detach()
    assert torch.equal(elementwise.logsumexp(logits), elementwise.logsumexp(logits.float()))


def test_the_gradient_of_weighted_logprobs(how: str, dtype: torch.dtype) -> None:
    logits = random(4, 203, dtype=dtype)
    rows = torch.tensor([0, 0, 0, 1, 3, 3])  # row 2 is nobody's, and a pair comes twice
    tokens = torch.tensor([5, 9, 5, 202, 0, 1])
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, -1.0])
    wide = logits.detach().double().requires_grad_()
    total = (wide.log_softmax(-1)[rows, tokens] * weights).sum()
    total.backward()  # type: ignore[no-untyped-call]
    held = logits.detach().clone()
    sums = elementwise.logsumexp(held)
    found = elementwise.cross_entropy_backward(held, sums, rows, tokens, weights)
    close(found, wide.grad, dtype)
