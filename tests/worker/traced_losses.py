"""Losses as a user writes them, traced by the official SDK, which also says what they must give."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tinker import types
from tinker.lib.public_interfaces.custom_loss import (
    LossHandle,
    encode_graph,
    run_loss_handle,
    trace_loss,
)
from tinsmith_worker.engine.values import Datum
from torch import Tensor

Given = Mapping[str, np.ndarray]


def ppo(logprobs: Tensor, advantages: Tensor, old: Tensor) -> Any:
    ratio = torch.exp(logprobs - old)
    clipped = torch.clamp(ratio, 0.8, 1.2)
    loss = -torch.minimum(ratio * advantages, clipped * advantages).sum()
    outside = ((ratio < 0.8) | (ratio > 1.2)).float()
    return loss, {
        "custom/clipped:mean": outside.mean(),
        "custom/tokens:sum": torch.ones_like(outside).sum(),
    }


def sequence_ratio(logprobs: Tensor, advantages: Tensor, old: Tensor) -> Any:
    length = logprobs.size(0)
    ratio = ((logprobs - old).sum() / length).exp()
    loss = -(ratio * advantages[0]) + 0.01 * (logprobs[1:] - logprobs[:-1]).pow(2).mean()
    return loss, {"custom/ratio:mean": ratio}


def preference(logprobs: Tensor, advantages: Tensor, old: Tensor) -> Any:
    margin = (logprobs - old).sum() * advantages.sign()[..., -1]
    loss = -F.logsigmoid(0.1 * margin) + F.softplus(margin) * 0.5
    return loss, {"custom/margin:sum": margin}


def shapes(logprobs: Tensor, advantages: Tensor, old: Tensor) -> Any:
    both = torch.stack([logprobs, old])
    outer = torch.einsum("i,j->ij", logprobs, advantages)
    first, second = both[0], both[1]
    best = both.max(dim=0)
    padded = F.pad(logprobs, (1, 2))
    joined = torch.cat((first[None, :], second.unsqueeze(0)), dim=0)
    loss = (
        outer.mean()
        + torch.logsumexp(joined, dim=0).sum()
        + best.values.sum()
        + (logprobs @ advantages)
        + padded.shape[0] * logprobs.mean()
        + torch.where(advantages > 0, logprobs, torch.zeros_like(logprobs)).sum()
        + joined.T.norm()
    )
    return loss, {"custom/width:sum": torch.ones(padded.shape[0]).sum()}


def functional(logprobs: Tensor, advantages: Tensor, old: Tensor) -> Any:
    scaled = F.normalize(logprobs, dim=0)
    loss = (
        F.huber_loss(logprobs, old)
        + F.mse_loss(logprobs, advantages, reduction="sum")
        + F.relu(logprobs + 1.0).sum()
        + F.gelu(logprobs).sum()
        + F.kl_div(logprobs, old.exp(), reduction="batchmean")
        + F.log_softmax(logprobs, dim=0).sum()
        + torch.special.expit(logprobs).sum()
        + scaled.sum().to(torch.float64).float()
        + logprobs.cumsum(0).masked_fill(advantages < 0, 0.0).sum()
        + torch.split(logprobs, 2)[0].sum()
    )
    return loss, {}


ONE_DIMENSION = {"logprobs": 1, "advantages": 1, "old": 1}
LOSSES: dict[str, tuple[Callable[..., Any], dict[str, int]]] = {
    one.__name__: (one, ONE_DIMENSION)
    for one in (ppo, sequence_ratio, preference, shapes, functional)
}


def candidates(logprobs: Tensor, weights: Tensor, beta: Tensor) -> Any:
    """[T, K] candidates and a scalar."""
    mass = logprobs.exp().sum(-1)
    return -(weights * logprobs).sum() * beta + mass.log().mean(), {"custom/mass:mean": mass.mean()}


LOSSES["candidates"] = (candidates, {"logprobs": 2, "weights": 2, "beta": 0})


def trace(name: str) -> LossHandle:
    function, ranks = LOSSES[name]
    return trace_loss(function, ranks, "session")  # type: ignore[arg-type]


def graph_of(handle: LossHandle) -> str:
    inputs = [one.model_dump() for one in handle.inputs]
    graph = encode_graph(handle).model_dump()
    return json.dumps({"inputs": inputs, "graph": graph})


def random_inputs(name: str, length: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    shape: tuple[int, ...] = (length,)
    for key, rank in LOSSES[name][1].items():
        size = {0: (), 1: (length,), 2: (length, 3)}[rank]
        if key == "logprobs":
            shape = size
        elif key == "old":
            made[key] = -random.exponential(1.0, size).astype(np.float32)
        else:
            made[key] = random.normal(size=size).astype(np.float32)
    made["target_tokens"] = random.integers(0, 50, shape)
    return made


def sdk_result(
    handle: LossHandle, data: list[Datum], logprobs: list[np.ndarray]
) -> tuple[float, dict[str, float], list[np.ndarray]]:
    """Loss, metrics and d loss / d log p as the SDK computes them on its side."""
    datums = [
        types.Datum(
            model_input=types.ModelInput.from_ints(one.tokens.tolist()),
            loss_fn_inputs={
                key: torch.from_numpy(np.array(array)) for key, array in one.inputs.items()
            },  # type: ignore[misc]
        )
        for one in data
    ]
    leaves = [torch.from_numpy(one.copy()).requires_grad_() for one in logprobs]
    loss, metrics = run_loss_handle(handle, datums, leaves)
    loss.backward()
    return loss.item(), metrics, [leaf.grad.numpy() for leaf in leaves]  # type: ignore[union-attr]
