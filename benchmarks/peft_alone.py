"""What the rival costs on this machine by itself: `python -m benchmarks.peft_alone fp32 training`.

Nothing is recorded: a row of the results needs both sides in one run. This is for knowing what to
beat before measuring, and for checking that the rival is well used (its variants beside each other).
"""

import argparse
from functools import partial

import torch

from benchmarks import workloads
from benchmarks.harness import Variant, interleave, one_thread, print_timings
from benchmarks.memory import peak_bytes
from benchmarks.peft_side import Rival, training_step
from tests.models import prepared_smollm2

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def training(dtype: torch.dtype, rounds: int) -> None:
    plain = Rival(prepared_smollm2(), dtype)
    lean = Rival(prepared_smollm2(), dtype, adapters_in_base_dtype=True)
    for title, batch in (
        ("ragged, 8 sequences", workloads.ragged_sft()),
        ("even, 4 sequences", workloads.even_sft()),
    ):
        ways = [
            Variant("padded", partial(plain.forward_backward, batch), plain.zero_grad),
            Variant("sorted micro-batches", partial(plain.forward_backward_at_best, batch), plain.zero_grad),
            Variant("padded, adapters in base dtype", partial(lean.forward_backward, batch), lean.zero_grad),
            Variant("at best (both)", partial(lean.forward_backward_at_best, batch), lean.zero_grad),
        ]  # fmt: skip
        comparison = interleave(ways, rounds=rounds, warm_up=False)
        print_timings(f"{title}, padding {batch.padding:.2f}", comparison, tokens=batch.num_tokens)


def group(dtype: torch.dtype, rounds: int) -> None:
    lean = Rival(prepared_smollm2(), dtype, adapters_in_base_dtype=True)
    batch = workloads.rl_group()
    best = Variant("at best", partial(lean.forward_backward_at_best, batch), lean.zero_grad)
    comparison = interleave([best], rounds=rounds, warm_up=False)
    print_timings("RL group, 256 + 16 x 64", comparison, tokens=batch.num_tokens)


def tenants(dtype: torch.dtype, rounds: int) -> None:
    for count, tokens in ((8, 128), (16, 16)):
        rivals = {
            "one after another": Rival(prepared_smollm2(), dtype, count),
            "same, adapters in base dtype": Rival(
                prepared_smollm2(), dtype, count, adapters_in_base_dtype=True
            ),
        }
        batches = workloads.tenants(count, tokens)
        ways = [
            Variant(name, partial(rival.forward_backward_in_turn, batches), rival.zero_grad)
            for name, rival in rivals.items()
        ]
        title = f"{count} tenants x {tokens} tokens"
        print_timings(title, interleave(ways, rounds=rounds, warm_up=False), tokens=count * tokens)


def optimizer(dtype: torch.dtype, rounds: int) -> None:
    rival = Rival(prepared_smollm2(), dtype)
    rival.forward_backward(workloads.tenants(1, 16)[0])
    kinds = {"AdamW": {}, "AdamW foreach": {"foreach": True}, "AdamW fused": {"fused": True}}
    ways = [Variant(name, rival.optimizer(**options).step) for name, options in kinds.items()]
    print_timings("optimizer step", interleave(ways, rounds=3 * rounds))


def sampling(dtype: torch.dtype, rounds: int) -> None:
    rival = Rival(prepared_smollm2(), dtype, 4, adapters_in_base_dtype=True)
    for count, slots in ((8, 8), (32, 8), (32, 32)):
        load = workloads.sampling(count)
        ways = [Variant("mixed adapter_names", partial(rival.sample_mixed, load, slots=slots))]
        if slots == count:
            ways.append(Variant("generate per adapter", partial(rival.sample_per_adapter, load)))
        title = f"sampling, {count} requests, {slots} at a time"
        comparison = interleave(ways, rounds=rounds, warm_up=False)
        print_timings(title, comparison, tokens=workloads.new_tokens(load))
    many = workloads.many_samples()
    ways = [Variant("16 prompts", partial(rival.sample_many, many))]
    print_timings("num_samples=16, 128 + 8", interleave(ways, rounds=rounds), tokens=16 * 8)


def memory(dtype: torch.dtype, rounds: int) -> None:
    """One round: a peak does not waver."""
    batch = workloads.even_sft()
    for at_best in (False, True):
        step = partial(training_step, prepared_smollm2(), dtype, batch, at_best=at_best)
        per_token = peak_bytes(step) / batch.num_tokens
        print(f"memory, at_best={at_best}: {per_token / 1024:.0f} KiB a token above the model")


PARTS = {part.__name__: part for part in (training, group, tenants, optimizer, sampling, memory)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dtype", choices=DTYPES)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    one_thread()
    PARTS[asked.part](DTYPES[asked.dtype], asked.rounds)


if __name__ == "__main__":
    main()
