"""A model's weights as its .safetensors files hold them: where each tensor is, and its rows, a few at a time.

The file is 8 bytes of header length, the header in JSON, and the tensors one behind the other
(huggingface/safetensors, "Format"). Only one block of rows is ever in memory.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinsmith_worker.engine.values import InvalidInput

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class Stored:
    """One tensor in its file: bytes `start` to `end`."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    def pieces(self) -> Iterator[bytes]:
        """As it is."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            left = self.end - self.start
            while left:
                piece = file.read(min(BLOCK_BYTES, left))
                left -= len(piece)
                yield piece

    def rows(self) -> Iterator[tuple[slice, Tensor]]:
        """A matrix in blocks of rows, each in the file's own dtype."""
        num_rows, width = self.shape
        row_bytes = (self.end - self.start) // max(num_rows, 1)
        step = max(1, BLOCK_BYTES // max(row_bytes, 1))
        with self.path.open("rb") as file:
            file.seek(self.start)
            for first in range(0, num_rows, step):
                last = min(first + step, num_rows)
                data = bytearray(file.read((last - first) * row_bytes))
                block = torch.frombuffer(data, dtype=DTYPES[self.dtype])
                yield slice(first, last), block.view(last - first, width)


@dataclass(frozen=True)
class Shard:
    path: Path

    @cached_property
    def header(self) -> dict[str, Any]:
        with self.path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(size))
        return {"data_starts": 8 + size, "entries": header}

    @property
    def metadata(self) -> dict[str, str]:
        return dict(self.header["entries"].get("__metadata__", {}))

    @property
    def tensors(self) -> dict[str, Stored]:
        """By name, in the order in which they stand in the file."""
        base, found = self.header["data_starts"], {}
        for name, entry in self.header["entries"].items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                shape = tuple(entry["shape"])
                found[name] = Stored(self.path, entry["dtype"], shape, base + start, base + end)
        return dict(sorted(found.items(), key=lambda item: item[1].start))


def shards_of(folder: Path) -> list[Shard]:
    """Of a model's folder, in its index's order; raises InvalidInput when it has none."""
    if (folder / INDEX).is_file():
        weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
        return [Shard(folder / name) for name in dict.fromkeys(weight_map.values())]
    if (folder / SINGLE).is_file():
        return [Shard(folder / SINGLE)]
    raise InvalidInput(f"base_model: its folder holds neither {SINGLE} nor {INDEX}.")


def header_bytes(tensors: dict[str, Stored], metadata: dict[str, str]) -> bytes:
    """Of a file in which these stand one behind the other."""
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, one in tensors.items():
        size = one.end - one.start
        entries[name] = {
            "dtype": one.dtype,
            "shape": list(one.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
