"""A GGUF file, read; its weights written as transformers names and lays them out."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import gguf
import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

FloatArray = npt.NDArray[np.float32]
Convert = Callable[[str, FloatArray], tuple[str, FloatArray]]
CONTROL, USER_DEFINED = 3, 4  # token types of GGUF


class GGUF:
    def __init__(self, path: Path) -> None:
        self.reader = gguf.GGUFReader(path)

    def field(self, name: str) -> Any:
        return self.reader.fields[name].contents()

    def has(self, name: str) -> bool:
        return any(tensor.name == name for tensor in self.reader.tensors)


class Family(Protocol):
    """What differs between kinds of model; a module of this package is one."""

    def config(self, file: GGUF) -> PreTrainedConfig: ...
    def tokenizer(self, file: GGUF) -> PreTrainedTokenizerBase: ...
    def weight_names(self, file: GGUF) -> Convert:
        """How a tensor of the file becomes one of transformers."""


def write_weights(file: GGUF, folder: Path, convert: Convert) -> Iterator[float]:
    """float32: what quantised weights stand for is not exact in bfloat16. Yields progress."""
    tensors: dict[str, Tensor] = {}
    for done, tensor in enumerate(file.reader.tensors, 1):
        array = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        name, array = convert(tensor.name, array)
        tensors[name] = torch.from_numpy(np.ascontiguousarray(array))
        yield done / len(file.reader.tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def rename(name: str, of_layer: dict[str, str], of_top: dict[str, str]) -> str:
    if name.startswith("blk."):
        _, layer, part, kind = name.split(".")
        return f"model.layers.{layer}.{of_layer[part]}.{kind}"
    part, kind = name.split(".")
    return f"{of_top[part]}.{kind}"
