"""Many small tenants on one SmolLM2-135M in bf16: in one pass, one after another, and by peft."""

from functools import partial

import torch

from benchmarks import workloads
from benchmarks.engine_side import Ours
from benchmarks.harness import (
    Comparison,
    Row,
    Variant,
    asked_rounds,
    finish,
    interleave,
    one_thread,
    print_timings,
)
from benchmarks.machine import SMOLLM2, gemm_flops
from benchmarks.peft_side import Rival
from tests.models import prepared_smollm2

FOLDER = prepared_smollm2()
BF16 = torch.bfloat16


def compared(count: int, tokens: int, rounds: int) -> Comparison:
    batches = workloads.tenants(count, tokens)
    ours = Ours(FOLDER, BF16, count)
    rival = Rival(FOLDER, BF16, count, adapters_in_base_dtype=True)
    comparison = interleave(
        [
            Variant("ours", partial(ours.forward_backward_together, batches), ours.zero_grad),
            Variant("ours in turn", partial(ours.forward_backward_in_turn, batches), ours.zero_grad),
            Variant("peft in turn", partial(rival.forward_backward_in_turn, batches), rival.zero_grad),
        ],
        rounds=rounds,
        warm_up=False,
    )  # fmt: skip
    print_timings(f"{count} tenants x {tokens} tokens, bf16", comparison, tokens=count * tokens)
    return comparison


def tenants(rounds: int) -> list[Row]:
    some, many = compared(8, 128, rounds), compared(16, 16, rounds)
    peak = gemm_flops(BF16)
    return [
        *(
            one.share_row(
                f"limit: {name} tenants / their matrix products",
                ours="ours",
                limit_seconds=SMOLLM2.training_flops(tokens, tokens) / peak,
            )
            for one, name, tokens in ((some, "8 x 128", 1024), (many, "16 x 16", 256))
        ),
        some.row("tenants: 8 x 128 / peft in turn", ours="ours", other="peft in turn", floor=2.5),
        some.row("tenants: 8 x 128 / our own in turn", ours="ours", other="ours in turn", floor=1.8),
        many.row("tenants: 16 x 16 / peft in turn", ours="ours", other="peft in turn"),
        many.row("tenants: 16 x 16 / our own in turn", ours="ours", other="ours in turn", floor=3.0),
    ]  # fmt: skip


def chunks(rounds: int) -> list[Row]:
    """One run's batch as the SDK cuts it."""
    ours, parts = Ours(FOLDER, BF16), workloads.chunks(workloads.ragged_sft(), 4)

    def in_turn() -> None:
        for part in parts:
            ours.forward_backward(part)

    together = partial(ours.forward_backward_chunks, parts)
    comparison = interleave(
        [Variant("ours", together, ours.zero_grad), Variant("in turn", in_turn, ours.zero_grad)],
        rounds=rounds,
        warm_up=False,
    )
    print_timings("4 chunks of one run, bf16", comparison)
    return [comparison.row("switch: chunks of a run in one pass", ours="ours", other="in turn")]


def main() -> None:
    one_thread()
    rounds = asked_rounds(2)
    finish([*tenants(rounds), *chunks(rounds)])


if __name__ == "__main__":
    main()
