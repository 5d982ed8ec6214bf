"""How cost grows: with sequence length, rank, weighted share, vocabulary, tenants and concurrency.

On random Llamas of 11 to 27 million parameters in fp32, as the service has it on a CPU by default.
Each row is one point of a curve beside the curve's first: cost of a token, and how it compares.
"""

import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

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
from benchmarks.workloads import Batch, Datum, SampleRequest

HIDDEN, LAYERS, VOCAB = 384, 6, 8192
TOKENS, CONTEXT = 1024, 4096
Work = tuple[Callable[[], object], Callable[[], object] | None, int]
"""What to run, what to do before, and how many tokens it is."""
Points = Iterable[tuple[object, Work]]


def random_llama(folder: Path, vocab: int = VOCAB) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
    )
    path = folder / f"vocab-{vocab}"
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def batch(length: int = 128, *, tokens: int = TOKENS, share: float = 1.0, seed: int = 0) -> Batch:
    """`tokens` in sequences of `length`; the last `share` of each is weighted."""
    random = np.random.default_rng(seed)
    weights = (np.arange(length) >= length - round(share * length)).astype(np.float32)
    drawn = (random.integers(3, VOCAB, length + 1, dtype=np.int32) for _ in range(tokens // length))
    return Batch(tuple(Datum(one[:-1], one[1:], weights) for one in drawn))


def training(ours: Ours, some: Batch) -> Work:
    return partial(ours.forward_backward, some), ours.zero_grad, some.num_tokens


def tenants(ours: Ours, count: int) -> Work:
    batches = [batch(64, tokens=64, seed=index) for index in range(count)]
    return partial(ours.forward_backward_together, batches), ours.zero_grad, 64 * count


def decoding(ours: Ours, count: int) -> Work:
    random = np.random.default_rng(0)
    prompts = [random.integers(3, VOCAB, 8, dtype=np.int32) for _ in range(count)]
    load = [SampleRequest(prompt, 32, index % 4, index) for index, prompt in enumerate(prompts)]
    return partial(ours.sample, load, slots=count), None, 32 * count


def curve(name: str, unit: str, points: Points, rounds: int) -> list[Row]:
    works = {f"{name} {at}": work for at, work in points}
    variants = [Variant(title, run, set_up) for title, (run, set_up, _) in works.items()]
    comparison = interleave(variants, rounds=rounds)
    print_timings(name, comparison)
    cost = {title: comparison.cpu_seconds(title) * 1e6 / works[title][2] for title in works}
    first = next(iter(works))
    return [
        Row(f"growth: {title}", cost[title], cost[first], unit, cost[first] / cost[title])
        for title in works
    ]


def main() -> None:
    one_thread()
    rounds = asked_rounds(3)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        plain = random_llama(folder)
        ours = Ours(plain, torch.float32, 16)
        ranks = [(rank, Ours(plain, torch.float32, rank=rank)) for rank in (8, 32, 64, 128)]
        vocabularies = [
            (size, Ours(random_llama(folder, size), torch.float32)) for size in (8192, 16384, 49152)
        ]
        trained, sampled = "CPU us/token", "CPU us/new token"
        curves: list[tuple[str, str, Points]] = [
            ("sequence length", trained, [(n, training(ours, batch(n))) for n in (64, 256, 1024)]),
            ("rank", trained, [(rank, training(one, batch())) for rank, one in ranks]),
            ("weighted share", trained, [(s, training(ours, batch(share=s))) for s in (0.125, 0.5, 1.0)]),
            ("vocabulary", trained, [(v, training(one, batch())) for v, one in vocabularies]),
            ("tenants of 64 tokens", trained, [(k, tenants(ours, k)) for k in (1, 4, 16)]),
            ("concurrent samples", sampled, [(k, decoding(ours, k)) for k in (1, 4, 16, 32)]),
        ]  # fmt: skip
        finish([row for name, unit, at in curves for row in curve(name, unit, at, rounds)])


if __name__ == "__main__":
    main()
