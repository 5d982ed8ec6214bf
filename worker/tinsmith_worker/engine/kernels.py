"""The CPU's element-wise kernels, compiled on first use; without a compiler, torch's own ops serve.

`kernels.cpp` says what they compute. Here they get torch's tensors: contiguous unless said, float32 or
bfloat16. The library is kept by a hash of source, flags and processor, so a machine compiles once.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import structlog
import torch
from torch import Tensor

_log = structlog.get_logger()
_SOURCE = Path(__file__).with_name("kernels.cpp")
_FLAGS = (
    *("-O3", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno"),
    *("-fno-trapping-math", "-fopenmp", "-shared", "-fPIC", "-std=c++17"),
)
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class Kernels:
    """Functions of one compiled library, by name and dtype."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._functions = {
            dtype: {name: getattr(library, f"{name}_{suffix}") for name in _ARGUMENTS}
            for dtype, suffix in _NAMES.items()
        }
        for functions in self._functions.values():
            for name, function in functions.items():
                function.argtypes, function.restype = _ARGUMENTS[name], None

    def call(self, name: str, dtype: torch.dtype, *arguments: "Tensor | float | None") -> None:
        """Tensors go by address, None as a null pointer; the number of threads goes last."""
        plain = [one.data_ptr() if isinstance(one, Tensor) else one for one in arguments]
        self._functions[dtype][name](*plain, torch.get_num_threads())


_P, _L, _F, _I = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
_ARGUMENTS = {
    "rms_forward": [_P, _P, _P, _P, _P, _P, _L, _L, _F, _I, _I],
    "rms_backward": [_P, _P, _P, _P, _P, _P, _L, _L, _I],
    "gated_forward": [_P, _P, _L, _L, _I, _I],
    "gated_backward": [_P, _P, _P, _L, _L, _I, _I],
    "rotate": [_P, _L, _P, _L, _P, _P, _L, _L, _L, _F, _I],
    "softmax_forward": [_P, _P, _L, _L, _L, _L, _L, _L, _F, _L, _I],
    "softmax_backward": [_P, _P, _P, _L, _L, _F, _I],
    "log_sum_exp": [_P, _P, _L, _L, _I],
    "cross_entropy_backward": [_P, _P, _P, _P, _P, _P, _P, _L, _L, _I],
}


def kernels_for(tensor: Tensor) -> Kernels | None:
    """The kernels that can take this tensor, if there are any."""
    if tensor.device.type != "cpu" or tensor.dtype not in _NAMES:
        return None
    return _library()


@cache
def _library() -> Kernels | None:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        _log.warning("no_compiler", consequence="element-wise steps run in torch, and slower")
        return None
    try:
        return Kernels(ctypes.CDLL(str(_built(compiler))))
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning("kernels_not_built", error=str(error)[:500])
        return None


def _built(compiler: str) -> Path:
    """The compiled library's path; written beside and moved, so that two builders do not meet."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinsmith/kernels"
    path = folder / f"{_fingerprint(compiler)}.so"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch, "kernels.so")
            command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, timeout=300)
            made.replace(path)
    return path


def _fingerprint(compiler: str) -> str:
    """-march=native means another thing on another processor."""
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True).stdout
    digest = hashlib.sha256(_SOURCE.read_bytes() + version + " ".join(_FLAGS).encode())
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        flags = next((x for x in cpuinfo.read_text().splitlines() if x.startswith("flags")), "")
        digest.update(flags.encode())
    return digest.hexdigest()[:24]
