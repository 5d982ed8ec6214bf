"""Peak memory of a piece of work above what its process held before: Linux, fresh process.

The kernel keeps the high-water mark of resident memory and lets a process reset its own, so
nothing needs sampling. A fresh process, because an allocator's leftovers would hide the peak.
"""

import ctypes
import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

RESET_PEAK = "5"  # proc_pid_clear_refs(5)


def peak_bytes(prepare: Callable[[], Callable[[], object]]) -> int:
    """Bytes above the start that the work returned by `prepare` needs, in a process of its own.

    `prepare` travels by pickle (a module's function, or a functools.partial of one) and must run
    the work once on something small, so that what is allocated once for all is there already.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(_peak_bytes_here, prepare).result()


def _peak_bytes_here(prepare: Callable[[], Callable[[], object]]) -> int:
    work = prepare()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    before = _status_bytes("VmRSS")
    work()
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"/proc/self/status has no {field}: memory is measured on Linux only")
