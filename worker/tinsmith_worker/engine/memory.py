"""How much memory there is, what a pass takes of it, and what running out of it looks like."""

import gc
from pathlib import Path

import torch

from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.kv_pool import BLOCK

_MIN_BLOCKS = 16


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA has an error of its own; the CPU's allocator raises a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def release(device: torch.device) -> None:
    """Give back what a failed pass still holds."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def available_bytes(device: torch.device) -> int:
    """What could be allocated now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(used.read_text()))
    return free


def max_blocks(model: BaseModel, gib: float, *, shares: int) -> int:
    """How many blocks of keys and values fit into so much memory, or into a quarter of what is free.

    `shares`: how many models there are to share it.
    """
    total = gib * 2**30 if gib else available_bytes(model.device) / 4
    return max(_MIN_BLOCKS, int(total / shares / (model.kv_bytes_per_token * BLOCK)))
