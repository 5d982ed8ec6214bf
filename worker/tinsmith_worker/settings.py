"""Everything a worker can be told, read once from the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self


class SettingsError(Exception):
    """A setting that is missing or does not parse; the message names it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    redis_url: str
    store_url: str
    models: dict[str, str]
    teachers: dict[str, str] = field(default_factory=dict)
    """Base models that only teach: loaded when they are first asked for."""
    teacher_idle_seconds: float = 600.0
    """A teacher's base model leaves after so long without use; 0: never."""
    device: str = "cpu"
    dtype: str = "float32"
    torch_threads: int = 0
    """0 leaves torch's own choice, the number of cores."""
    max_pass_tokens: int = 2048
    """Tokens that share one forward pass: bounds the memory of activations."""
    max_sampling_slots: int = 32
    sampling_share: float = 0.5
    """Share of the device's time that sampling gets while training has work too."""
    exact: bool | None = None
    """Sampler and trainer equal to the last bit, in any company. None: on the CPU."""
    kv_cache_gib: float = 0.0
    """Keys and values of samples and of prompts worth remembering; 0: a quarter of the free memory."""
    max_resident_runs: int = 16
    max_lora_rank: int = 256
    lease_seconds: float = 5.0
    gap_seconds: float = 30.0
    """How long a run waits for a missing seq_id before that op, and those behind it, are failed."""
    snapshot_steps: int = 20
    snapshot_seconds: float = 60.0
    snapshot_log_bytes: int = 64 << 20
    """A run is snapshot after so many optimizer steps, seconds, or bytes of replay log."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        read = _Reader(environment)
        data_dir = environment.get("TINSMITH_DATA_DIR")
        store = environment.get("TINSMITH_STORE_URL") or (data_dir and str(Path(data_dir, "store")))
        return cls(
            redis_url=read.required("REDIS_URL", environment.get("TINSMITH_REDIS_URL")),
            store_url=read.required("STORE_URL or TINSMITH_DATA_DIR", store),
            models=_models(read.required("MODELS", environment.get("TINSMITH_MODELS")), "MODELS"),
            teachers=_models(text, "TEACHERS")
            if (text := environment.get("TINSMITH_TEACHERS"))
            else {},
            teacher_idle_seconds=read.number("TEACHER_IDLE_SECONDS", cls.teacher_idle_seconds),
            device=environment.get("TINSMITH_DEVICE", cls.device),
            dtype=environment.get("TINSMITH_DTYPE", cls.dtype),
            torch_threads=read.integer("TORCH_THREADS", cls.torch_threads),
            max_pass_tokens=read.integer("MAX_PASS_TOKENS", cls.max_pass_tokens),
            max_sampling_slots=read.integer("MAX_SAMPLING_SLOTS", cls.max_sampling_slots),
            sampling_share=read.share("SAMPLING_SHARE", cls.sampling_share),
            exact=read.yes_or_no("EXACT", cls.exact),
            kv_cache_gib=read.number("KV_CACHE_GIB", cls.kv_cache_gib),
            max_resident_runs=read.integer("MAX_RESIDENT_RUNS", cls.max_resident_runs),
            max_lora_rank=read.integer("MAX_LORA_RANK", cls.max_lora_rank),
            lease_seconds=read.number("LEASE_SECONDS", cls.lease_seconds),
            gap_seconds=read.number("GAP_SECONDS", cls.gap_seconds),
            snapshot_steps=read.integer("SNAPSHOT_STEPS", cls.snapshot_steps),
            snapshot_seconds=read.number("SNAPSHOT_SECONDS", cls.snapshot_seconds),
            snapshot_log_bytes=read.integer("SNAPSHOT_LOG_BYTES", cls.snapshot_log_bytes),
        )


@dataclass(frozen=True)
class _Reader:
    environment: Mapping[str, str]

    def required(self, name: str, value: str | None) -> str:
        if not value:
            raise SettingsError(f"TINSMITH_{name} is not set.")
        return value

    def number(self, name: str, default: float) -> float:
        text = self.environment.get(f"TINSMITH_{name}")
        if not text:
            return default
        try:
            return float(text)
        except ValueError:
            raise SettingsError(f"TINSMITH_{name}: {text!r} is not a number.") from None

    def share(self, name: str, default: float) -> float:
        value = self.number(name, default)
        if not 0 < value < 1:
            raise SettingsError(f"TINSMITH_{name}: {value} is not between 0 and 1.")
        return value

    def yes_or_no(self, name: str, default: bool | None) -> bool | None:
        text = self.environment.get(f"TINSMITH_{name}", "").lower()
        known = {"": default, "true": True, "1": True, "false": False, "0": False}
        if text not in known:
            raise SettingsError(f"TINSMITH_{name}: {text!r} is neither true nor false.")
        return known[text]

    def integer(self, name: str, default: int) -> int:
        value = self.number(name, default)
        if value != int(value) or value < 0:
            raise SettingsError(f"TINSMITH_{name}: {value} is not a whole number from 0.")
        return int(value)


def _models(text: str, name: str) -> dict[str, str]:
    """`served-name=folder,served-name=folder`."""
    models = dict(
        part.strip().split("=", 1) for part in text.split(",") if part.strip() and "=" in part
    )
    if not models:
        raise SettingsError(f"TINSMITH_{name}: {text!r} is not name=folder[,name=folder].")
    return models
