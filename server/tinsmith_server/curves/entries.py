"""What an entry of the stream `steps` says, as the columns of a row (done.lua, adopt.lua)."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


def step(entry_id: str, fields: Mapping[str, str]) -> dict[str, Any]:
    """`loss` is per weighted token, `drift` the sampler's mean distance: log q - log p."""
    weight = _number(fields["weight"])
    loss, drift = _number(fields["loss"]), _number(fields["drift"])
    return {
        "run_id": fields["run"],
        "step": int(fields["step"]),
        "at": _moment(entry_id),
        "loss": loss / weight if loss is not None and weight else loss,
        "drift": drift / weight if drift is not None and weight else None,
        "tokens": int(float(fields["tokens"])),
        "grad_norm": float(fields["grad_norm"]),
        "learning_rate": float(fields["learning_rate"]),
    }


def adoption(entry_id: str, fields: Mapping[str, str]) -> dict[str, Any]:
    return {
        "run_id": fields["run"],
        "epoch": int(fields["epoch"]),
        "at": _moment(entry_id),
        "worker": fields["worker"][:100],
    }


def _number(text: str) -> float | None:
    return float(text) if text else None


def _moment(entry_id: str) -> datetime:
    """A stream's entry is named by the millisecond of its coming."""
    return datetime.fromtimestamp(int(entry_id.split("-")[0]) / 1000, UTC)
