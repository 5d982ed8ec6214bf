"""An adapter merged into its base model, in transformers' layout, tensor by tensor.

Every file of the model is read, added to and written as a stream, so memory holds the adapter and a few
blocks of rows, however large the model is. The sum is made in fp32 and rounded to the file's dtype once.

A head that shares its weights with the embedding cannot take what only the unembedding learned: it is
refused, or written as a tensor of its own when asked.
"""

import json
import re
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from tinsmith_worker.carrying.safetensors_files import (
    DTYPES,
    INDEX,
    Shard,
    Stored,
    header_bytes,
    shards_of,
)
from tinsmith_worker.checkpoint_files import CONFIG, WEIGHTS
from tinsmith_worker.engine.values import InvalidInput
from tinsmith_worker.store import Store

_PREFIX = "base_model.model."
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_NOT_COPIED = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"}
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_TIED = (
    "untie_unembedding: this model's unembedding is its embedding, and the adapter trained the "
    "unembedding alone, so the two cannot be one tensor any more. Ask for untie_unembedding to write it "
    "as a tensor of its own, or train with train_unembed=False."
)
Report = Callable[[float, str], None]


@dataclass(frozen=True)
class _Delta:
    """What an adapter adds to one matrix: scale B A, with A [r, in] and B [out, r]."""

    a: Tensor
    b: Tensor
    scale: float

    def added(self, rows: slice, block: Tensor) -> Tensor:
        merged = block.float() + self.scale * (self.b[rows] @ self.a)
        if not bool(torch.isfinite(merged).all()):
            raise InvalidInput("path: the merged weights are not finite.")
        return merged.to(block.dtype)


def merge(
    store: Store,
    folder: str,
    *,
    base_model: str,
    prefix: str,
    target: str,
    untie_unembedding: bool,
    report: Report,
) -> dict[str, Any]:
    """Writes the merged model to the store's folder `target`."""
    model = _Model(Path(folder), _deltas(store, prefix), untie_unembedding)
    total, done = model.size_bytes, 0

    def counted(name: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
        nonlocal done
        for piece in pieces:
            done += len(piece)
            report(min(1.0, done / total), name)  # the small files are not in the total
            yield piece

    files = {name: counted(name, pieces) for name, pieces in model.files().items()}
    size = store.stream_folder(target, files)
    return {
        "base_model": base_model,
        "size_bytes": size,
        "merged_tensors": len(model.deltas),
        "untied": model.untied,
        "peak_memory_bytes": _peak_memory_bytes(),
    }


def _deltas(store: Store, prefix: str) -> dict[str, _Delta]:
    """By the name of the weight that each changes."""
    files = store.read_files(prefix, (CONFIG, WEIGHTS))
    config, tensors = json.loads(files[CONFIG]), load(files[WEIGHTS])
    scale = config["lora_alpha"] / config["r"]
    deltas = {}
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            path = name.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
            b = tensors[f"{_PREFIX}{path}.lora_B.weight"]
            deltas[f"{path}.weight"] = _Delta(a.float(), b.float(), scale)
    return deltas


class _Model:
    """A base model's files, with the adapter added."""

    def __init__(self, folder: Path, deltas: Mapping[str, _Delta], untie: bool) -> None:
        self.folder, self.deltas = folder, deltas
        self.config = json.loads((folder / "config.json").read_text())
        self._shards = shards_of(folder)
        self._stored = {name: one for shard in self._shards for name, one in shard.tensors.items()}
        tied = bool(self.config.get("tie_word_embeddings")) or _HEAD not in self._stored
        self.untied = tied and _HEAD in deltas
        if self.untied and not untie:
            raise InvalidInput(_TIED)
        self._check()

    def _source(self, name: str) -> Stored | None:
        return self._stored.get(_EMBEDDING if self.untied and name == _HEAD else name)

    def _check(self) -> None:
        for name, delta in self.deltas.items():
            source = self._source(name)
            if source is None:
                raise InvalidInput(f"base_model: its files hold no tensor {name!r}.")
            if source.dtype not in DTYPES:
                raise InvalidInput(
                    f"base_model: {name} is stored as {source.dtype}; only weights in "
                    f"{', '.join(DTYPES)} can be merged."
                )
            if source.shape != (delta.b.shape[0], delta.a.shape[1]):
                raise InvalidInput(f"path: the adapter does not fit the base model's {name}.")

    @property
    def size_bytes(self) -> int:
        """Of the weights."""
        return sum(shard.path.stat().st_size for shard in self._shards) + self._added_bytes

    @property
    def _added_bytes(self) -> int:
        if not self.untied or _HEAD in self._stored:
            return 0
        head = self._stored[_EMBEDDING]
        return head.end - head.start

    def files(self) -> dict[str, Iterator[bytes]]:
        """Name and content of each, small ones first."""
        files = {
            path.name: iter((path.read_bytes(),))
            for path in sorted(self.folder.iterdir())
            if path.is_file()
            and _PLAIN_NAME.fullmatch(path.name)
            and path.suffix not in _NOT_COPIED
            and path.name != INDEX
        }
        if self.untied:
            config = self.config | {"tie_word_embeddings": False}
            files["config.json"] = iter((json.dumps(config, indent=2).encode(),))
        if (self.folder / INDEX).is_file():
            files[INDEX] = iter((self._index(),))
        for shard in self._shards:
            files[shard.path.name] = self._content(shard)
        return files

    def _tensors(self, shard: Shard) -> dict[str, Stored]:
        """A head of its own stands at the end of the last file."""
        tensors = shard.tensors
        if self._added_bytes and shard is self._shards[-1]:
            tensors[_HEAD] = self._stored[_EMBEDDING]
        return tensors

    def _content(self, shard: Shard) -> Iterator[bytes]:
        tensors = self._tensors(shard)
        yield header_bytes(tensors, shard.metadata)
        for name, stored in tensors.items():
            delta, source = self.deltas.get(name), self._source(name)
            if delta is None or source is None:
                yield from stored.pieces()
                continue
            for rows, block in source.rows():
                yield delta.added(rows, block).contiguous().view(torch.uint8).numpy().tobytes()

    def _index(self) -> bytes:
        index = json.loads((self.folder / INDEX).read_text())
        if self._added_bytes:
            index["weight_map"][_HEAD] = self._shards[-1].path.name
            total = index.get("metadata", {}).get("total_size", 0) + self._added_bytes
            index.setdefault("metadata", {})["total_size"] = total
        return json.dumps(index, indent=2).encode()


def _peak_memory_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
