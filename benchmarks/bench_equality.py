"""What must be equal, and what exactness costs: gradients and peft's, one pass and many, the sampler
and the trainer, exact mode and fast.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks import workloads
from benchmarks.engine_side import Ours
from benchmarks.harness import (
    Row,
    Variant,
    asked_rounds,
    finish,
    interleave,
    one_thread,
    print_timings,
)
from benchmarks.peft_side import Rival
from benchmarks.workloads import Batch, Datum, SampleRequest
from tests.models import prepared_smollm2

FOLDER = prepared_smollm2()
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PROBED = 8


def gradients() -> list[Row]:
    """Over all of an adapter's numbers: |ours - other| / |other|."""
    batch = workloads.even_sft()
    ours, rival = Ours(FOLDER, torch.float32), Rival(FOLDER, torch.float32)
    ours.take_weights(rival.weights())
    ours.forward_backward(batch)
    rival.forward_backward(batch)
    gathered = ours.gradients()
    theirs: dict[str, Tensor] = {}
    for name, parameter in rival.parameters().items():
        assert parameter.grad is not None
        theirs[name.replace(".adapter_0.", ".")] = parameter.grad
    assert theirs.keys() == gathered.keys()
    difference = relative([gathered[name] for name in theirs], list(theirs.values()))
    return [Row.at_most("equality: gradient fp32 / peft's", difference, 1e-5, "relative")]


def passes() -> list[Row]:
    """8 tenants in one pass and one after another."""
    rows, batches = [], workloads.tenants(8, 64)
    for name, dtype in DTYPES.items():
        ours = Ours(FOLDER, dtype, len(batches))
        ours.forward_backward_together(batches)
        together = [run.gradient for run in ours.runs]
        ours.zero_grad()
        ours.forward_backward_in_turn(batches)
        in_turn = [run.gradient for run in ours.runs]
        difference = relative(together, in_turn)
        rows.append(
            Row.at_most(f"equality: 8 tenants in one pass / 8 passes, {name}", difference, 1e-5, "relative")
        )  # fmt: skip
    return rows


def relative(
    some: "list[Tensor | None] | list[Tensor]", others: "list[Tensor | None] | list[Tensor]"
) -> float:
    a, b = (
        torch.cat([one.flatten() for one in side if one is not None]) for side in (some, others)
    )
    return float((a - b).norm() / b.norm())


@dataclass(frozen=True)
class Distance:
    """Between the log p that sampling answered and those that training gives the same tokens."""

    largest: float
    kl: float
    """k3 (Schulman 2020, "Approximating KL divergence"): mean of r - 1 - log r, r = trainer / sampler."""


def distance(ours: Ours) -> Distance:
    requests = [replace(one, new_tokens=16) for one in workloads.sampling(PROBED, num_adapters=1)]
    answers = ours.sample(requests)
    sampled, trained = [], []
    for request, answer in zip(requests, answers, strict=True):
        [sequence] = answer.sequences
        sampled += sequence.logprobs
        [logprobs] = ours.forward(Batch((completed(request, sequence.tokens),)))
        trained += logprobs[-len(sequence.tokens) :].tolist()
    log_ratio = np.array(trained) - np.array(sampled)
    return Distance(float(np.abs(log_ratio).max()), float(np.mean(np.expm1(log_ratio) - log_ratio)))


def completed(request: SampleRequest, tokens: list[int]) -> Datum:
    whole = np.concatenate([request.prompt, np.array(tokens, np.int32)])
    return Datum(whole[:-1], whole[1:], np.ones(whole.size - 1, np.float32))


def numerics() -> list[Row]:
    rows = []
    for name, dtype in DTYPES.items():
        exact, two_threads = exact_distances(dtype)
        fast = distance(Ours(FOLDER, dtype, exact=False))
        print(f"{name}: exact {exact}, fast {fast}")
        title = f"equality: sampler / trainer, {name}"
        rows.append(Row.at_most(f"{title} exact, largest", exact.largest, 1e-12, "nats"))
        largest = two_threads.largest
        rows.append(Row.at_most(f"{title} exact, largest, 2 threads", largest, 1e-12, "nats"))
        kl = Row.at_most(f"{title} fast, KL", fast.kl, 1e-8, "nats")
        rows.append(kl if dtype is torch.float32 else replace(kl, floor=None))
    return rows


def exact_distances(dtype: torch.dtype) -> tuple[Distance, Distance]:
    """With 1 thread and with 2; the machine is probed under each."""
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(distance(Ours(FOLDER, dtype, exact=True)))
    one_thread()
    return found[0], found[1]


def price(rounds: int) -> list[Row]:
    """Exact beside fast. Ratios are below 1 where exactness costs something."""
    rows = []
    batch, load = workloads.even_sft(), workloads.sampling(8)
    for name, dtype in DTYPES.items():
        exact, fast = (Ours(FOLDER, dtype, 4, exact=exact) for exact in (True, False))
        for work, run in (
            ("forward_backward", lambda side: side.forward_backward(batch)),
            ("8 samples", lambda side: side.sample(load)),
        ):
            comparison = interleave(
                [
                    Variant("exact", partial(run, exact), exact.zero_grad),
                    Variant("fast", partial(run, fast), fast.zero_grad),
                ],
                rounds=rounds,
                warm_up=False,
            )
            print_timings(f"{work} {name}", comparison)
            rows.append(comparison.row(f"exactness: {work} {name} / fast", ours="exact", other="fast"))  # fmt: skip
    return rows


def main() -> None:
    one_thread()
    rounds = asked_rounds(2)
    finish([*gradients(), *passes(), *numerics(), *price(rounds)])


if __name__ == "__main__":
    main()
