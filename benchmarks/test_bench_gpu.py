"""The GPU benchmark's own sums, and its run on a tiny model without a GPU."""

import torch

from benchmarks.bench_gpu import LLAMA_8B, TINY, Bench, decode_bytes, training_flops
from benchmarks.machine import ModelShape


def test_the_shape_is_llamas():
    shape = LLAMA_8B.shape
    assert isinstance(shape, ModelShape)
    embeddings = 2 * shape.hidden * shape.vocab
    norms = (2 * shape.layers + 1) * shape.hidden
    assert shape.layer_weights + embeddings + norms == 8_030_261_248


def test_flops_of_a_token_by_hand():
    # weights: 4 x 6.98 G + 4 x 4096 x 128256; attention: 6 x 32 layers x 4096 x 1024 keys
    assert training_flops(LLAMA_8B, 1) == 4 * (6_979_321_856 + 525_336_576) + 805_306_368


def test_a_decode_step_reads_weights_once_and_adapters_and_context_by_row():
    alone, company = (decode_bytes(LLAMA_8B, rows, 1_000, 10) for rows in (1, 32))
    weights = 2 * (6_979_321_856 + 525_336_576)
    assert alone == weights + 2 * (1_000 + 2 * 32 * 1024 * 10)
    assert company == weights + 2 * (8 * 1_000 + 32 * 2 * 32 * 1024 * 10)


def test_every_row_comes_out_on_a_tiny_model():
    torch.set_num_threads(1)
    rows = Bench(TINY, torch.device("cpu")).rows()
    assert [row.name for row in rows] == [
        "gpu: MFU at 64 tokens a batch",
        "gpu: MFU at 128 tokens a batch",
        "gpu: decoding, 1 concurrent, 8 adapters",
        "gpu: decoding, 4 concurrent, 8 adapters",
    ]
    assert all(row.ratio > 0 for row in rows)
