"""Which optimizers there are: chosen when a run is created, and named again by each step."""

from typing import Any

import msgspec
from tinsmith.protocol.bodies import AdamParams, DimuonParams, OptimizerConfig, OptimStep
from tinsmith.protocol.errors import BadRequest, Unsupported
from tinsmith.protocol.jobs import OptimStepJob

from tinsmith_server.db import TrainingRun

ADAMW, DIMUON = "adamw", "dimuon"
_VERSIONS = {ADAMW: 1, DIMUON: 1}


def chosen(config: OptimizerConfig | None, otherwise: str = ADAMW) -> str:
    """The type that a new run asks for. Raises Unsupported by name."""
    if config is None:
        return otherwise
    if config.type not in _VERSIONS:
        offered = ", ".join(_VERSIONS)
        raise Unsupported(
            f"optimizer_config.type: {config.type[:40]!r} is not offered; use one of {offered}."
        )
    if config.version != _VERSIONS[config.type]:
        raise Unsupported(
            f"optimizer_config.version: {config.type} has version {_VERSIONS[config.type]} here."
        )
    return config.type


def config_of(run: TrainingRun) -> dict[str, Any]:
    """As the SDK reads it."""
    if run.optimizer == ADAMW:
        return {"type": ADAMW}
    return {"type": run.optimizer, "version": _VERSIONS[run.optimizer]}


def step_of(body: OptimStep, run: TrainingRun) -> OptimStepJob:
    """The step with its params, if they are of the run's own optimizer."""
    given = body.optimizer_params
    name = ADAMW if given is None else given.get("type")
    if name not in _VERSIONS:
        raise Unsupported(
            f"optimizer_params.type: {str(name)[:40]!r} is not offered; use one of {', '.join(_VERSIONS)}."
        )
    if name != run.optimizer:
        raise BadRequest(
            f"optimizer_params.type: {name} is not {run.optimizer}, which this run was created with."
        )
    if given is None:
        return OptimStepJob(adam=body.adam_params or AdamParams())
    params = {key: value for key, value in given.items() if key != "type"}
    kind: type[AdamParams] | type[DimuonParams] = AdamParams if name == ADAMW else DimuonParams
    known = kind.__struct_fields__
    if unknown := params.keys() - set(known):
        raise BadRequest(
            f"optimizer_params: {name} knows no {min(unknown)!r}; it takes {', '.join(known)}."
        )
    try:
        made = msgspec.convert(params, type=kind)
    except msgspec.ValidationError as error:
        raise BadRequest(f"optimizer_params: {error}") from None
    return OptimStepJob(adam=made) if isinstance(made, AdamParams) else OptimStepJob(muon=made)
