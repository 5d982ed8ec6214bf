"""What this machine is, and what it can do at best: the limit that a benchmark is held against.

Limits are measured in the same run as what they limit, on one thread, in CPU seconds. The peak of
a matrix product is that of the fastest way to it that PyTorch has here: aten's, or oneDNN's with
the weight packed beforehand, which on some processors is much faster.
"""

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch

from benchmarks.harness import RESULTS

REPEATS = 9


@dataclass(frozen=True)
class Limits:
    """FLOP/s of a 1024x576x1536 product, bytes/s of a long read."""

    fp32_flops: float
    bf16_flops: float
    read_bytes: float


@dataclass(frozen=True)
class ModelShape:
    """A Llama-shaped model, for what its matrix products cost at least."""

    hidden: int = 576
    intermediate: int = 1536
    layers: int = 30
    query_width: int = 576
    key_value_width: int = 192
    vocab: int = 49_152

    @property
    def layer_weights(self) -> int:
        attention = 2 * self.query_width + 2 * self.key_value_width
        return self.layers * self.hidden * (attention + 3 * self.intermediate)

    def training_flops(self, tokens: int, weighted: int) -> int:
        """Forward and input gradient of the frozen weights; the head only where it is weighted.

        Attention and the adapters come on top, so nobody reaches this limit.
        """
        return 4 * self.layer_weights * tokens + 4 * self.hidden * self.vocab * weighted

    def decode_bytes(self, bytes_per_weight: int) -> int:
        """What one decode step of any number of rows must read."""
        return bytes_per_weight * (self.layer_weights + self.hidden * self.vocab)


SMOLLM2 = ModelShape()


def limits() -> Limits:
    return Limits(
        fp32_flops=gemm_flops(torch.float32),
        bf16_flops=gemm_flops(torch.bfloat16),
        read_bytes=read_bytes_per_second(),
    )


def gemm_flops(
    dtype: torch.dtype, *, rows: int = 1024, inner: int = 576, outer: int = 1536
) -> float:
    """The best of aten's linear and oneDNN's with a packed weight, in FLOP/s."""
    x, weight = torch.randn(rows, inner, dtype=dtype), torch.randn(outer, inner, dtype=dtype)
    ways: list[Callable[[], object]] = [lambda: torch.nn.functional.linear(x, weight)]
    if torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""))
    return 2 * rows * inner * outer / min(cpu_seconds(way) for way in ways)


def read_bytes_per_second(megabytes: int = 256) -> float:
    block = torch.ones(megabytes << 18)
    return block.nbytes / cpu_seconds(block.sum)


def cpu_seconds(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(REPEATS):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return median(times)


def facts() -> dict[str, object]:
    """Processor, its matrix instructions, versions, commit and day."""
    return {
        "processor": _processor(),
        "instructions": [name for name in ("amx_bf16", "avx512_bf16") if name in _cpu_flags()],
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft")},
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def record_facts(measured: Limits, path: Path = RESULTS / "machine.json") -> None:
    """Beside the rows: what they were measured on."""
    numbers = {
        "gemm_fp32_gflops": round(measured.fp32_flops / 1e9),
        "gemm_bf16_gflops": round(measured.bf16_flops / 1e9),
        "read_gigabytes_per_second": round(measured.read_bytes / 1e9, 1),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts() | numbers, indent=1) + "\n")


def _cpuinfo(field: str) -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")


def _processor() -> str:
    model = _cpuinfo("model name") or platform.processor()
    family, number = _cpuinfo("cpu family"), _cpuinfo("model\t")
    return f"{model} (family {family} model {number})" if family else model


def _cpu_flags() -> list[str]:
    return _cpuinfo("flags").split()


def _commit() -> str:
    """The commit that ran, marked where the code differed from it; results are not code."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--", ":/", ":!results")
    return (commit or "unknown") + ("-dirty" if changed else "")


def _git(*arguments: str) -> str:
    """What git prints, or nothing where there is no git or no repository."""
    if shutil.which("git") is None:
        return ""
    here = Path(__file__).parent
    answer = subprocess.run(
        ["git", *arguments], cwd=here, capture_output=True, text=True, check=False
    )
    return answer.stdout.strip()


def main() -> None:
    torch.set_num_threads(1)
    measured = limits()
    print(json.dumps(facts(), indent=1))
    print(measured)
    record_facts(measured)


if __name__ == "__main__":
    main()
