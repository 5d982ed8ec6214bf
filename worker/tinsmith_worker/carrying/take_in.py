"""A PEFT adapter from outside becomes a checkpoint to train on.

An adapter of ours covers whole places (attention, MLP, unembedding) with one rank and scale 32 / rank.
So every module's B takes up the difference in scale; rows of A that a smaller rank lacks, and modules of
a touched place that the adapter lacks, begin as in a fresh adapter: A random, B zero. The function is
the same, and what was missing can learn.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from tinsmith.protocol.peft_config import PeftConfig
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from tinsmith_worker import checkpoint_files
from tinsmith_worker.carrying.merge import Report
from tinsmith_worker.carrying.safetensors_files import DTYPES, Stored, shards_of
from tinsmith_worker.checkpoint_files import OPTIMIZER, OURS, WEIGHTS
from tinsmith_worker.engine.adapter import ALPHA, Adapter, Shapes
from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.optimizer import MOMENTS, RunState
from tinsmith_worker.engine.values import InvalidInput
from tinsmith_worker.store import Store

_PREFIX = "base_model.model."
_EMBEDDING = "model.embed_tokens.weight"
_TINKERS_HEAD, _HEAD = "model.unembed_tokens", "lm_head"
Pairs = dict[str, dict[str, Tensor]]


def take_in(
    store: Store,
    folder: str,
    *,
    base_model: str,
    source: str,
    target: str,
    config: dict[str, Any],
    seed: int,
    report: Report,
) -> dict[str, Any]:
    """Reads the upload in the store's folder `source`, writes the checkpoint to `target`."""
    files = store.read_folder(source)
    report(0.2, "read")
    shapes = shapes_of(folder, base_model)
    plan = msgspec.convert(config, PeftConfig)
    tensors = tensors_of(files[WEIGHTS])
    _drop_base_weights(tensors, Path(folder))
    adapter, fresh = adapter_of(shapes, plan, pairs_of(tensors), seed)
    report(0.6, "mapped")
    state = RunState(adapter)
    if OPTIMIZER in files:
        state = _with_optimizer(adapter, files, exact=not fresh and _same_scale(plan))
    size = store.write_folder(target, checkpoint_files.pack(state, base_model, optimizer=True))
    return {
        "size_bytes": size,
        "rank": adapter.rank,
        "trains": adapter.trains,
        "fresh_modules": fresh,
        "optimizer": state.optimizer,
        "steps": state.steps,
    }


def shapes_of(folder: str, name: str) -> Shapes:
    """The base model's linear maps, without its weights."""
    from tinsmith_worker.engine.fused import FusedModel
    from tinsmith_worker.engine.generic import GenericModel

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(Path(folder)))
    kind: type[BaseModel] = FusedModel if FusedModel.knows(model) else GenericModel
    made = kind(model, name, None)
    made.device = torch.device("cpu")
    return cast(Shapes, made)


def tensors_of(data: bytes) -> dict[str, Tensor]:
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError):
        raise InvalidInput("adapter_model: it is not a whole safetensors file.") from None


def _drop_base_weights(tensors: dict[str, Tensor], folder: Path) -> None:
    """PEFT saves a targeted head whole, and the embedding with it. Frozen here, they must be the base's."""
    stored = {name: one for shard in shards_of(folder) for name, one in shard.tensors.items()}
    for name in [name for name in tensors if ".lora_" not in name]:
        plain = name.removeprefix(_PREFIX).replace(".base_layer.", ".")
        source = stored.get(plain) or (
            stored.get(_EMBEDDING) if plain == f"{_HEAD}.weight" else None
        )
        if source is None or not _equal(tensors.pop(name), source):
            raise InvalidInput(
                f"adapter_model: {name[:120]!r} is a whole weight and not the base model's own; the base "
                "model is frozen here."
            )


def _equal(tensor: Tensor, source: Stored) -> bool:
    """After rounding to the coarser of the two types."""
    if tensor.shape != source.shape or len(source.shape) != 2 or source.dtype not in DTYPES:
        return False
    coarse = min(tensor.dtype, DTYPES[source.dtype], key=lambda dtype: torch.finfo(dtype).bits)
    return all(torch.equal(tensor[rows].to(coarse), one.to(coarse)) for rows, one in source.rows())


def pairs_of(tensors: Mapping[str, Tensor]) -> Pairs:
    """A and B by module path."""
    pairs: Pairs = {}
    for name, tensor in tensors.items():
        path, _, half = name.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".lora_")
        if not name.startswith(_PREFIX) or half not in ("A", "B") or tensor.ndim != 2:
            raise InvalidInput(
                f"adapter_model: {name[:120]!r} is not a LoRA matrix of a linear module."
            )
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor.float()).all()):
            raise InvalidInput(f"adapter_model: {name[:120]!r} holds what is not a finite number.")
        pairs.setdefault(_HEAD if path == _TINKERS_HEAD else path, {})[half] = tensor.float()
    return pairs


def adapter_of(
    shapes: Shapes, config: PeftConfig, pairs: Pairs, seed: int
) -> tuple[Adapter, list[str]]:
    """The adapter, and the modules of its places that the pairs say nothing of."""
    places = {path: shapes.place(path) for paths in shapes.groups() for path in paths}
    for path in pairs:
        if path not in places:
            raise InvalidInput(f"adapter_model: this service trains no module {path[:120]!r}.")
    if not pairs:
        raise InvalidInput("adapter_model: it holds no LoRA matrix.")
    touched = {places[path] for path in pairs}
    rank = max(_checked(shapes, config, path, pair) for path, pair in pairs.items())
    adapter = Adapter.create(
        shapes,
        rank=rank,
        seed=seed,
        train_attn="attn" in touched,
        train_mlp="mlp" in touched,
        train_unembed="unembed" in touched,
    )
    parameters = adapter.parameters()
    for path, pair in pairs.items():
        mine = pair["A"].shape[0]
        scale = config.scale_of(path) * rank / ALPHA
        parameters[f"{_PREFIX}{path}.lora_A.weight"][:mine] = pair["A"]
        parameters[f"{_PREFIX}{path}.lora_B.weight"][:, :mine] = pair["B"] * scale
    fresh = sorted(path for path, place in places.items() if place in touched and path not in pairs)
    return adapter, fresh


def _checked(shapes: Shapes, config: PeftConfig, path: str, pair: Mapping[str, Tensor]) -> int:
    """Its rank."""
    if set(pair) != {"A", "B"}:
        raise InvalidInput(f"adapter_model: {path} has only one of lora_A and lora_B.")
    rank, (out_features, in_features) = config.rank_of(path), shapes.shape(path)
    expected = {"A": (rank, in_features), "B": (out_features, rank)}
    for half, shape in expected.items():
        if pair[half].shape != shape:
            raise InvalidInput(
                f"adapter_model: {path}.lora_{half} is {list(pair[half].shape)}, and rank {rank} of "
                f"this base model makes it {list(shape)}."
            )
    return rank


def _same_scale(config: PeftConfig) -> bool:
    """Whether the numbers went over as they are: only then do an optimizer's moments belong to them."""
    return config.alpha == ALPHA and not (
        config.rslora or config.alpha_pattern or config.rank_pattern
    )


def _with_optimizer(adapter: Adapter, files: Mapping[str, bytes], *, exact: bool) -> RunState:
    if not exact or OURS not in files:
        raise InvalidInput(
            "optimizer: its state fits only an adapter that this service wrote, with its tinsmith.json; "
            "leave it out to begin with a fresh one."
        )
    try:
        ours: dict[str, Any] = json.loads(files[OURS])
        kind, steps = str(ours["optimizer"]), int(ours["steps"])
        moments = load(files[OPTIMIZER])
    except (ValueError, KeyError, TypeError, SafetensorError):
        raise InvalidInput("optimizer: its files do not parse.") from None
    if kind not in MOMENTS or steps < 0:
        raise InvalidInput(f"optimizer: {kind[:40]!r} is not one that this service knows.")
    state = RunState(adapter, kind)
    expected = {
        f"{moment}.{name}": weight.shape
        for moment in MOMENTS[kind]
        for name, weight in adapter.parameters().items()
    }
    if moments and {name: tensor.shape for name, tensor in moments.items()} != expected:
        raise InvalidInput("optimizer: its moments are not of this adapter's matrices.")
    if any(not bool(torch.isfinite(one.float()).all()) for one in moments.values()):
        raise InvalidInput("optimizer: its moments are not finite numbers.")
    state.load_optimizer(moments, steps)
    return state
