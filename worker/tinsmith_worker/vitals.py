"""What this process takes of its machine: processor, memory, and its accelerator. For pages and metrics.

Cheap enough for the lease's thread, which tells Redis three times a lease. What the machine does not
tell is left out, never guessed.
"""

import contextlib
import os
import time
from pathlib import Path

import torch

_STATM = Path("/proc/self/statm")


class Vitals:
    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._at = self._now()

    def look(self) -> dict[str, float]:
        """cores: busy with us on average since the last look; of_cores: that we may use; bytes; shares 0 to 1."""
        before, self._at = self._at, self._now()
        seconds, busy = (now - then for now, then in zip(self._at, before, strict=True))
        found = {
            "cores": busy / max(seconds, 1e-9),
            "of_cores": float(len(os.sched_getaffinity(0))),
            "memory_bytes": _resident_bytes(),
            "of_memory_bytes": float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
        }
        return found | (_of_gpu(self._device) if self._device.type == "cuda" else {})

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.monotonic(), time.process_time()


def _resident_bytes() -> float:
    return float(int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))


def _of_gpu(device: torch.device) -> dict[str, float]:
    """The whole device's, other processes' part included. How busy it is only nvidia-ml-py can say."""
    try:
        free, total = torch.cuda.mem_get_info(device)
        found = {"gpu_bytes": float(total - free), "of_gpu_bytes": float(total)}
    except RuntimeError:  # in trouble: the engine will say so, and the lease must not end for it
        return {}
    with contextlib.suppress(ModuleNotFoundError, RuntimeError):
        found["gpu_share"] = torch.cuda.utilization(device) / 100
    return found
