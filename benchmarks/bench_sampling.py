"""Sampling from SmolLM2-135M in bf16: continuous batching against `generate`, shared prefixes, and
a teacher's scorings.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from tinsmith_worker.engine.sampler import Sampler

from benchmarks import workloads
from benchmarks.engine_side import Ours, run_to_end, torchs_ops, under
from benchmarks.harness import (
    Row,
    Variant,
    asked_rounds,
    finish,
    interleave,
    one_thread,
    print_timings,
)
from benchmarks.machine import SMOLLM2, gemm_flops, read_bytes_per_second
from benchmarks.peft_side import Rival
from benchmarks.workloads import SampleRequest, new_tokens
from tests.models import prepared_smollm2

FOLDER = prepared_smollm2()
BF16 = torch.bfloat16
TURN_TOKENS = 16


def limit_seconds(requests: Sequence[SampleRequest], slots: int) -> float:
    """The larger of the matrix products and the reading of the weights, once a step."""
    new = sum(request.new_tokens for request in requests)
    read = sum(len(request.prompt) for request in requests) + new
    head = SMOLLM2.hidden * SMOLLM2.vocab
    flops = 2 * SMOLLM2.layer_weights * read + 2 * head * new
    steps = max(*(request.new_tokens for request in requests), -(-new // slots))
    moved = steps * SMOLLM2.decode_bytes(BF16.itemsize)
    return max(flops / gemm_flops(BF16), moved / read_bytes_per_second())


def concurrent(ours: Ours, rival: Rival, count: int, rounds: int) -> list[Row]:
    """As many requests as slots, over 4 adapters."""
    load = workloads.sampling(count)
    per_adapter = "generate per adapter"
    comparison = interleave(
        [
            Variant("ours", partial(ours.sample, load, slots=count)),
            Variant(per_adapter, partial(rival.sample_per_adapter, load)),
        ],
        rounds=rounds,
        warm_up=False,
    )
    print_timings(f"{count} concurrent, 4 adapters", comparison, tokens=new_tokens(load))
    name = f"sampling: {count} concurrent / {per_adapter}"
    return [
        comparison.row(name, ours="ours", other=per_adapter, floor=3.0),
        comparison.share_row(
            f"limit: {count} concurrent / its products or its reading",
            ours="ours",
            limit_seconds=limit_seconds(load, count),
        ),
    ]


def queue(ours: Ours, rival: Rival, rounds: int) -> list[Row]:
    load = workloads.sampling(32)
    comparison = interleave(
        [
            Variant("ours", partial(ours.sample, load, slots=8)),
            Variant("mixed generate", partial(rival.sample_mixed, load, slots=8)),
        ],
        rounds=rounds,
        warm_up=False,
    )
    print_timings("32 requests over 8 slots", comparison, tokens=new_tokens(load))
    name = "sampling: queue of 32 over 8 slots / mixed generate"
    return [comparison.row(name, ours="ours", other="mixed generate", floor=2.8)]


def many_samples(ours: Ours, rival: Rival, rounds: int) -> list[Row]:
    request = workloads.many_samples()
    comparison = interleave(
        [
            Variant("ours", partial(ours.sample, [request])),
            Variant("a prefill a sample", partial(ours.sample_apart, request)),
            Variant("generate", partial(rival.sample_many, request)),
        ],
        rounds=rounds,
    )
    print_timings("num_samples=16, 128 + 8", comparison, tokens=new_tokens((request,)))
    row = partial(comparison.row, ours="ours")
    return [
        row("switch: one prefill for 16 samples", other="a prefill a sample", floor=1.8),
        row("sampling: num_samples=16 / generate", other="generate"),
    ]


def compiled(ours: Ours, rounds: int) -> list[Row]:
    work = partial(ours.sample, workloads.sampling(8), slots=8)
    comparison = interleave(
        [Variant("ours", work), Variant("torch's ops", under(torchs_ops, work))],
        rounds=rounds,
        warm_up=False,
    )
    print_timings("8 concurrent, compiled steps", comparison)
    name = "switch: element-wise steps compiled, 8 concurrent"
    return [comparison.row(name, ours="ours", other="torch's ops")]


def teacher(ours: Ours, rounds: int) -> list[Row]:
    prompts = workloads.teacher_prompts()
    comparison = interleave(
        [
            Variant("ours", partial(ours.score, prompts)),
            Variant("one by one", partial(ours.score_one_by_one, prompts)),
        ],
        rounds=rounds,
    )
    print_timings("64 scorings", comparison, tokens=sum(len(prompt) for prompt in prompts))
    return [comparison.row("switch: 64 scorings together", ours="ours", other="one by one")]


def second_turn(ours: Ours, rounds: int) -> list[Row]:
    """The first turn is not timed; the second begins with all of it."""
    turns: dict[bool, tuple[Sampler, list[SampleRequest]]] = {}

    def first(remembers: bool) -> Callable[[], None]:
        def run() -> None:
            sampler, talks = ours.sampler(share_prefixes=remembers), workloads.conversations()
            answers = run_to_end(sampler, ours.requests(talks))
            again = [
                workloads.next_turn(talk, answer.sequences[0].tokens, tokens=TURN_TOKENS)
                for talk, answer in zip(talks, answers, strict=True)
            ]
            turns[remembers] = (sampler, again)

        return run

    def second(remembers: bool) -> Callable[[], None]:
        def run() -> None:
            sampler, talks = turns[remembers]
            answers = run_to_end(sampler, ours.requests(talks))
            assert all(bool(one.prompt_cache_hit_tokens) == remembers for one in answers)

        return run

    comparison = interleave(
        [
            Variant("ours", second(True), first(True)),
            Variant("read again", second(False), first(False)),
        ],
        rounds=rounds,
    )
    print_timings("second turn of 4 conversations", comparison)
    return [comparison.row("switch: prefix cache, second turn", ours="ours", other="read again")]


def main() -> None:
    one_thread()
    rounds = asked_rounds(2)
    ours = Ours(FOLDER, BF16, 4)
    rival = Rival(FOLDER, BF16, 4, adapters_in_base_dtype=True)
    rows = [row for count in (8, 32) for row in concurrent(ours, rival, count, rounds)]
    rows += queue(ours, rival, rounds) + many_samples(ours, rival, rounds)
    finish([*rows, *compiled(ours, rounds), *teacher(ours, rounds), *second_turn(ours, rounds)])


if __name__ == "__main__":
    main()
