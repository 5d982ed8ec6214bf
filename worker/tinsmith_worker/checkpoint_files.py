"""A run as files, in PEFT's layout, and back. Bytes only: where they go is the store's business.

`adapter_config.json` and `adapter_model.safetensors` open in peft as they are. `tinsmith.json` holds
what PEFT has no place for, `optimizer.safetensors` the optimizer's moments.
"""

import json

from safetensors.torch import load, save
from torch import Tensor

from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.optimizer import RunState
from tinsmith_worker.engine.values import InvalidInput

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OPTIMIZER, OURS = "optimizer.safetensors", "tinsmith.json"
AVERAGES = "averages.safetensors"


def pack(state: RunState, base_model: str, *, optimizer: bool) -> dict[str, bytes]:
    adapter = state.adapter
    ours = {
        "format": 1,
        "base_model": base_model,
        "rank": adapter.rank,
        "trains": adapter.trains,
        "steps": state.steps,
        "optimizer": state.optimizer,
    }
    files = {
        CONFIG: json.dumps(adapter.peft_config(base_model), indent=1).encode(),
        WEIGHTS: save(_plain(adapter.parameters()), metadata={"format": "pt"}),
        OURS: json.dumps(ours, indent=1).encode(),
    }
    if optimizer:
        files[OPTIMIZER] = save(_plain(state.optimizer_tensors()))
    if optimizer and state.averages:
        rows = {f"{rate!r}:{every}": row for (rate, every), row in state.averages.items()}
        files[AVERAGES] = save(_plain(rows))
    return files


def size_bytes(state: RunState, *, optimizer: bool) -> int:
    """About what `pack` makes: its numbers, without the few hundred bytes around them."""
    rows = 1
    if optimizer:
        rows += len(state.moments or ()) + len(state.averages)
    return state.adapter.row.numel() * 4 * rows


def unpack(model: BaseModel, files: dict[str, bytes], *, fresh: str | None = None) -> RunState:
    """A run to train on, with the optimizer as it was saved, or with a fresh one of this type."""
    adapter = unpack_adapter(model, files)
    if fresh is not None:
        return RunState(adapter, fresh)
    if OPTIMIZER not in files:
        raise InvalidInput("path: this checkpoint has no optimizer state; load it without.")
    ours = json.loads(files[OURS])
    state = RunState(adapter, ours.get("optimizer", "adamw"))  # once there was only that
    state.load_optimizer(load(files[OPTIMIZER]), int(ours["steps"]))
    for name, row in load(files[AVERAGES]).items() if AVERAGES in files else ():
        rate, every = name.split(":")
        state.averages[float(rate), int(every)] = row.to(adapter.row.device)
    return state


def unpack_adapter(model: BaseModel, files: dict[str, bytes]) -> Adapter:
    ours = json.loads(files[OURS])
    return Adapter.from_tensors(model, ours["rank"], ours["trains"], load(files[WEIGHTS]))


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
