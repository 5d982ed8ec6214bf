"""What a CUDA device makes of a model of Llama-3.1-8B's shape: `make bench-gpu`.

Random weights, made on the spot, in bf16: what a pass costs does not depend on what they say. MFU of
forward_backward against the matrix products' peak, decoding against the reading of weights, adapters
and keys and values, both measured in the same run; and how many adapters a device has room for.

    python -m benchmarks.bench_gpu          rows in benchmarks/results/gpu.json
    python -m benchmarks.bench_gpu --tiny   the same on a tiny model and whatever device; no rows
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.fused import FusedModel
from tinsmith_worker.engine.kv_pool import BLOCK
from tinsmith_worker.engine.numerics import Numerics
from tinsmith_worker.engine.optimizer import AdamParams, RunState, optim_step
from tinsmith_worker.engine.sampler import Sampler
from tinsmith_worker.engine.training import Work, forward_backward
from tinsmith_worker.engine.values import Datum, SampleRequest
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.harness import RESULTS, Row, print_rows, record
from benchmarks.machine import ModelShape, facts

DTYPE = torch.bfloat16
DECODED_STEPS = 32


@dataclass(frozen=True)
class Plan:
    """A model's shape and how much of everything is run on it."""

    shape: ModelShape
    heads: int
    key_value_heads: int
    sequence: int
    batch_tokens: tuple[int, ...]
    concurrent: tuple[int, ...]
    pass_tokens: int
    adapters: int = 8
    rank: int = 32
    repeats: int = 3


LLAMA_8B = Plan(
    shape=ModelShape(4096, 14_336, 32, 4096, 1024, 128_256),
    heads=32,
    key_value_heads=8,
    sequence=1024,
    batch_tokens=(8192, 65_536),
    concurrent=(1, 32, 256),
    pass_tokens=16_384,
)
TINY = Plan(
    shape=ModelShape(64, 128, 2, 64, 32, 512),
    heads=4,
    key_value_heads=2,
    sequence=32,
    batch_tokens=(64, 128),
    concurrent=(1, 4),
    pass_tokens=64,
    rank=4,
    repeats=1,
)


def training_flops(plan: Plan, tokens: int) -> int:
    """Every position weighted; attention's four products of a backward pass beside two of a forward.

    What is computed twice counts once, and the adapters' part not at all.
    """
    shape = plan.shape
    attention = 6 * shape.layers * shape.query_width * plan.sequence * tokens
    return shape.training_flops(tokens, tokens) + attention


def decode_bytes(plan: Plan, rows: int, adapter_numbers: int, context: int) -> int:
    """What one step must read: weights, the adapters in use, keys and values of every row."""
    shape, size = plan.shape, DTYPE.itemsize
    kept = 2 * shape.layers * shape.key_value_width * context * rows
    adapters = min(rows, plan.adapters) * adapter_numbers
    return shape.decode_bytes(size) + size * (kept + adapters)


class Bench:
    def __init__(self, plan: Plan, device: torch.device) -> None:
        self.plan, self.device = plan, device
        self.model = FusedModel(_random_llama(plan, device), "random", None, _numerics(device))
        self.runs = [self._run(seed) for seed in range(plan.adapters)]
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)  # loading holds some weights twice

    def _run(self, seed: int) -> RunState:
        return RunState(
            Adapter.create(self.model, rank=self.plan.rank, seed=seed, train_unembed=False)
        )

    def rows(self) -> list[Row]:
        peak, bandwidth = gemm_flops(self.device), read_bytes(self.device)
        print(
            f"The device gives {peak / 1e12:.3g} TFLOP/s, {bandwidth / 1e12:.3g} TB/s", flush=True
        )
        made = [self.training(tokens, peak) for tokens in self.plan.batch_tokens]
        if self.device.type == "cuda":
            made.append(self.adapters_per_device())
        return made + [self.decoding(rows, bandwidth) for rows in self.plan.concurrent]

    def training(self, tokens: int, peak: float) -> Row:
        run, data = (
            self.runs[0],
            [self._datum(index) for index in range(tokens // self.plan.sequence)],
        )
        work = Work(run=run, data=data, loss_fn="cross_entropy", loss_fn_config={})

        def once() -> None:
            run.gradient = None
            [outcome] = forward_backward(self.model, [work], max_pass_tokens=self.plan.pass_tokens)
            if outcome.error is not None:
                raise RuntimeError(outcome.error)

        seconds = self.seconds(once)
        run.gradient = None
        reached, limit = tokens / seconds, peak * tokens / training_flops(self.plan, tokens)
        share = reached / limit
        return Row(f"gpu: MFU at {tokens} tokens a batch", reached, limit, "tokens/s", share, 0.45)

    def decoding(self, rows: int, bandwidth: float) -> Row:
        """Steps with all rows there: the last ones before the first sample is done."""
        plan = self.plan
        prefill_steps = -(-rows * (plan.sequence + 1) // plan.pass_tokens) + 1
        new_tokens = 2 * prefill_steps + DECODED_STEPS + 1
        blocks = rows * (-(-(plan.sequence + new_tokens) // BLOCK) + 2)
        sampler = Sampler(
            self.model, max_slots=rows, max_pass_tokens=plan.pass_tokens, max_blocks=blocks
        )
        for index in range(rows):
            sampler.add(self._request(index, new_tokens))
        seconds: list[float] = []
        while sampler.busy:
            self._synchronize()
            started = time.perf_counter()
            finished = sampler.step()
            self._synchronize()
            seconds.append(time.perf_counter() - started)
            if finished:
                break
        step = median(seconds[-1 - DECODED_STEPS : -1])
        context = plan.sequence + new_tokens - DECODED_STEPS // 2
        moved = decode_bytes(plan, rows, self.runs[0].adapter.layout.size, context)
        reached, limit = rows / step, rows * bandwidth / moved
        floor = 0.6 if rows == 32 else None
        name = f"gpu: decoding, {rows} concurrent, {plan.adapters} adapters"
        return Row(name, reached, limit, "tokens/s", reached / limit, floor)

    def adapters_per_device(self) -> Row:
        """Beside the model and a pass: weights, their bf16 copy, gradient and moments of each."""
        before = torch.cuda.memory_allocated(self.device)
        run = self._run(seed=99)
        work = Work(run=run, data=[self._datum(0)], loss_fn="cross_entropy", loss_fn_config={})
        for _ in range(2):  # the second leaves a gradient beside the moments
            forward_backward(self.model, [work], max_pass_tokens=self.plan.pass_tokens)
            if run.moments is None:
                optim_step(run, AdamParams())
        each = torch.cuda.memory_allocated(self.device) - before
        total = torch.cuda.get_device_properties(self.device).total_memory
        free = total - torch.cuda.max_memory_allocated(self.device)
        room = self.plan.adapters + free // each
        return Row(
            "gpu: adapters that fit beside a full pass", room, each / 2**20, "adapters, MiB", 1.0
        )

    def seconds(self, work: Callable[[], object]) -> float:
        work()
        times = []
        for _ in range(self.plan.repeats):
            self._synchronize()
            started = time.perf_counter()
            work()
            self._synchronize()
            times.append(time.perf_counter() - started)
        return median(times)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _tokens(self, seed: int, count: int) -> np.ndarray:
        random = np.random.default_rng(seed)
        return random.integers(3, self.plan.shape.vocab, count, dtype=np.int32)

    def _datum(self, seed: int) -> Datum:
        tokens = self._tokens(seed, self.plan.sequence + 1)
        weights = np.ones(self.plan.sequence, np.float32)
        return Datum(tokens[:-1], {"target_tokens": tokens[1:], "weights": weights})

    def _request(self, index: int, new_tokens: int) -> SampleRequest:
        return SampleRequest(
            request_id=str(index),
            adapter=self.runs[index % self.plan.adapters].adapter,
            prompt=self._tokens(index, self.plan.sequence).tolist(),
            num_samples=1,
            max_tokens=new_tokens,
            temperature=1.0,
            top_k=-1,
            top_p=1.0,
            seed=index,
            stop=[],
        )


def _random_llama(plan: Plan, device: torch.device) -> LlamaForCausalLM:
    shape = plan.shape
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=plan.heads,
        num_key_value_heads=plan.key_value_heads,
        max_position_embeddings=131_072,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    with device:
        model = LlamaForCausalLM._from_config(config, dtype=DTYPE)
    return model.eval().requires_grad_(False)  # type: ignore[no-any-return]


def _numerics(device: torch.device) -> Numerics:
    """As `base_model.load` has it by default: exact on the CPU."""
    return Numerics.probe(device, DTYPE, exact=device.type == "cpu")


def gemm_flops(device: torch.device) -> float:
    size = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(size, size, device=device, dtype=DTYPE) for _ in range(2))
    return 2 * size**3 / _repeated_seconds(lambda: a @ b, device)


def read_bytes(device: torch.device) -> float:
    """A copy reads as much as it writes."""
    block = torch.ones(1 << (31 if device.type == "cuda" else 22), device=device, dtype=torch.uint8)
    target = torch.empty_like(block)
    return 2 * block.nbytes / _repeated_seconds(lambda: target.copy_(block), device)


def _repeated_seconds(work: Callable[[], object], device: torch.device, times: int = 20) -> float:
    for _ in range(3):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(times):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / times


def gpu_facts() -> dict[str, object]:
    asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=True)
    return facts() | {"gpu_and_driver": answer.stdout.strip(), "cuda": torch.version.cuda}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    tiny = parser.parse_args().tiny
    if not (tiny or torch.cuda.is_available()):
        sys.exit("bench-gpu needs a CUDA device, and PyTorch finds none here.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = Bench(TINY if tiny else LLAMA_8B, device).rows()
    print_rows(rows)
    if not tiny:
        record(rows, RESULTS / "gpu.json")
        (RESULTS / "gpu_machine.json").write_text(json.dumps(gpu_facts(), indent=1) + "\n")


if __name__ == "__main__":
    main()
