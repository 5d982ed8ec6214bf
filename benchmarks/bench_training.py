"""forward_backward on SmolLM2-135M: against transformers with peft, against itself with one thing
off, and against the matrix products that nobody can do without.
"""

from functools import partial

import torch

from benchmarks import workloads
from benchmarks.engine_side import Ours, torchs_ops, under
from benchmarks.harness import (
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
BF16, FP32 = torch.bfloat16, torch.float32


def ragged(rounds: int) -> list[Row]:
    """8 sequences of 32 to 256 tokens, a third of them weighted, in bf16."""
    batch, ours = workloads.ragged_sft(), Ours(FOLDER, BF16)
    own = partial(ours.forward_backward, batch)
    rival, lean = Rival(FOLDER, BF16), Rival(FOLDER, BF16, adapters_in_base_dtype=True)
    comparison = interleave(
        [
            Variant("ours", own, ours.zero_grad),
            Variant("plain weights", under(ours.plain_weights, own), ours.zero_grad),
            Variant("torch's ops", under(torchs_ops, own), ours.zero_grad),
            Variant("peft padded", partial(rival.forward_backward, batch), rival.zero_grad),
            Variant("peft at best", partial(lean.forward_backward_at_best, batch), lean.zero_grad),
        ],
        rounds=rounds,
        warm_up=False,
    )
    print_timings("ragged bf16", comparison, tokens=batch.num_tokens)
    limit = SMOLLM2.training_flops(batch.num_tokens, batch.num_weighted) / gemm_flops(BF16)
    row = partial(comparison.row, ours="ours")
    return [
        row("training: ragged bf16 / peft padded", other="peft padded", floor=3.0),
        row("training: ragged bf16 / peft at best", other="peft at best", floor=2.1),
        row("switch: weights in oneDNN's layout, ragged bf16", other="plain weights"),
        row("switch: element-wise steps compiled, ragged bf16", other="torch's ops"),
        comparison.share_row(
            "limit: ragged bf16 / its matrix products", ours="ours", limit_seconds=limit
        ),
    ]


def even(rounds: int) -> list[Row]:
    """4 sequences of nearly one length in fp32, where padding costs little."""
    batch, ours, rival = workloads.even_sft(), Ours(FOLDER, FP32), Rival(FOLDER, FP32)
    comparison = interleave(
        [
            Variant("ours", partial(ours.forward_backward, batch), ours.zero_grad),
            Variant("peft padded", partial(rival.forward_backward, batch), rival.zero_grad),
        ],
        rounds=rounds,
        warm_up=False,
    )
    print_timings("even fp32", comparison, tokens=batch.num_tokens)
    limit = SMOLLM2.training_flops(batch.num_tokens, batch.num_weighted) / gemm_flops(FP32)
    return [
        comparison.row(
            "training: even fp32 / peft padded", ours="ours", other="peft padded", floor=1.3
        ),
        comparison.share_row(
            "limit: even fp32 / its matrix products", ours="ours", limit_seconds=limit
        ),
    ]


def group(rounds: int) -> list[Row]:
    """16 completions of 64 tokens after one prompt of 256, in bf16."""
    batch, ours = workloads.rl_group(), Ours(FOLDER, BF16)
    lean = Rival(FOLDER, BF16, adapters_in_base_dtype=True)
    unshared = partial(ours.forward_backward, batch, share_prompts=False)
    comparison = interleave(
        [
            Variant("ours", partial(ours.forward_backward, batch), ours.zero_grad),
            Variant("unshared", unshared, ours.zero_grad),
            Variant("peft at best", partial(lean.forward_backward_at_best, batch), lean.zero_grad),
        ],
        rounds=rounds,
        warm_up=False,
    )
    print_timings("RL group, 256 + 16 x 64, bf16", comparison, tokens=batch.num_tokens)
    computed = 256 + len(batch.data) * (len(batch.data[0]) - 256)
    limit = SMOLLM2.training_flops(computed, batch.num_weighted) / gemm_flops(BF16)
    row = partial(comparison.row, ours="ours")
    return [
        row("training: RL group bf16 / peft at best", other="peft at best", floor=6.0),
        row("switch: prompt of a group computed once, bf16", other="unshared", floor=2.3),
        comparison.share_row(
            "limit: RL group bf16 / its matrix products", ours="ours", limit_seconds=limit
        ),
    ]


def main() -> None:
    one_thread()
    rounds = asked_rounds(2)
    finish([*ragged(rounds), *even(rounds), *group(rounds)])


if __name__ == "__main__":
    main()
