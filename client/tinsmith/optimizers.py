"""Which optimizer a run has, and the settings of one step of it."""

from typing import Any

from tinsmith.protocol.bodies import AdamParams as AdamParams
from tinsmith.protocol.bodies import DimuonParams as DimuonParams
from tinsmith.protocol.bodies import OptimizerConfig as OptimizerConfig

OptimParams = AdamParams | DimuonParams


class AdamOptimizerConfig(OptimizerConfig, kw_only=True, frozen=True):
    type: str = "adamw"


class DimuonOptimizerConfig(OptimizerConfig, kw_only=True, frozen=True):
    type: str = "dimuon"


def step_body(params: OptimParams) -> dict[str, Any]:
    """AdamW's settings have a field of their own; any other family goes by its name."""
    if isinstance(params, AdamParams):
        return {"adam_params": params}
    named = {
        "type": "dimuon",
        "learning_rate": params.learning_rate,
        "beta1": params.beta1,
        "grad_clip_norm": params.grad_clip_norm,
    }
    return {"optimizer_params": named}
