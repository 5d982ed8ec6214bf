"""How much memory there is, and what running out of it looks like."""

import ctypes
import gc
from functools import cache
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


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


@cache
def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next tensor.

    By default it gives large blocks back, and every new one costs a page fault per 4 KiB: four fifths
    of the time of copying an adapter.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # another libc keeps its own counsel
        return
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
