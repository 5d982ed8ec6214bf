"""What an `adapter_config.json` from outside means, as far as this service can carry it on.

Every adapter here is plain LoRA with alpha 32 on linear maps. Another alpha, rank-stabilised scales
(Kalajdzievski 2023) and patterns by module only change how B is scaled or how many rows A has, so they
are carried over exactly. What changes the function otherwise is refused by the field's name; so is a
field that nobody here has heard of, once it is set.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Self

import msgspec

from tinsmith.protocol.errors import BadRequest, Unsupported

_IMPOSSIBLE = {
    "use_dora": "DoRA scales the whole weight by column, which plain LoRA cannot express",
    "use_qalora": "QALoRA pools the inputs, which plain LoRA does not",
    "use_bdlora": "block-diagonal matrices are not what this service trains",
    "modules_to_save": "these modules are trained whole, and the base model is frozen here",
    "layer_replication": "the base model's layers are fixed here",
    "trainable_token_indices": "embeddings are frozen here",
    "target_parameters": "only linear modules carry adapters here",
    "alora_invocation_tokens": "an adapter is on for every token here",
    "arrow_config": "adapters are not routed here",
    "lora_bias": "biases are frozen here",
    "monteclora_config": "this variant is not plain LoRA",
    "velora_config": "this variant is not plain LoRA",
    "kasa_config": "this variant is not plain LoRA",
    "ensure_weight_tying": "the embedding is frozen here, and so cannot follow the unembedding",
    "megatron_config": "only transformers' modules carry adapters here",
}
_HARMLESS = {
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode"),
    *("auto_mapping", "peft_version", "lora_dropout", "target_modules", "exclude_modules"),
    *("layers_to_transform", "layers_pattern", "megatron_core", "runtime_config", "eva_config"),
    *("fan_in_fan_out", "bias", "init_lora_weights"),
    *("loftq_config", "corda_config", "lora_ga_config", "qalora_group_size"),
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
}
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Other ways to begin change the base model's weights too, and the adapter alone is not the model."""


class PeftConfig(msgspec.Struct, kw_only=True, frozen=True):
    """`scale` of a module is what its B A is multiplied with."""

    rank: int
    alpha: float
    rslora: bool
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Raises BadRequest or Unsupported, naming the field."""
        try:
            config: Any = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise BadRequest("adapter_config: it is not JSON.") from None
        if not isinstance(config, dict) or str(config.get("peft_type")).upper() != "LORA":
            raise Unsupported("adapter_config.peft_type: only LORA adapters can be taken in.")
        _check_fields(config)
        try:
            return cls(
                rank=_rank(config.get("r"), "r"),
                alpha=_number(config.get("lora_alpha"), "lora_alpha"),
                rslora=bool(config.get("use_rslora")),
                rank_pattern=_pattern(config, "rank_pattern", _rank),
                alpha_pattern=_pattern(config, "alpha_pattern", _number),
            )
        except re.error as error:
            raise BadRequest(f"adapter_config: a pattern does not parse ({error.msg}).") from None

    @property
    def largest_rank(self) -> int:
        """Of any module that the patterns may name."""
        return max([self.rank, *self.rank_pattern.values()])

    def rank_of(self, path: str) -> int:
        return int(_by_pattern(self.rank_pattern, path, self.rank))

    def scale_of(self, path: str) -> float:
        rank = self.rank_of(path)
        alpha = float(_by_pattern(self.alpha_pattern, path, self.alpha))
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def _check_fields(config: Mapping[str, Any]) -> None:
    for name, why in _IMPOSSIBLE.items():
        if config.get(name):
            raise Unsupported(f"adapter_config.{name}: {why}.")
    if config.get("bias", "none") != "none":
        raise Unsupported(
            "adapter_config.bias: biases are frozen here; only 'none' can be taken in."
        )
    if config.get("fan_in_fan_out"):
        raise Unsupported("adapter_config.fan_in_fan_out: only linear modules carry adapters here.")
    start = config.get("init_lora_weights", True)
    if not any(start is one or start == one for one in _PLAIN_STARTS):
        raise Unsupported(
            f"adapter_config.init_lora_weights: {str(start)[:40]!r} changes the base model too; convert "
            "the adapter with save_pretrained(path_initial_model_for_weight_conversion=...) first."
        )
    for name, value in config.items():
        if name not in _HARMLESS and value:
            raise Unsupported(f"adapter_config.{name[:60]}: this field is not known here.")


def _pattern(config: Mapping[str, Any], name: str, check: Any) -> dict[str, Any]:
    given = config.get(name) or {}
    if not isinstance(given, dict) or len(given) > 10_000:
        raise BadRequest(f"adapter_config.{name}: it is not an object of at most 10000 modules.")
    for pattern in given:
        if not re.fullmatch(r"\^?[A-Za-z0-9_.]{1,200}\$?", pattern):
            raise Unsupported(
                f"adapter_config.{name}: {pattern[:60]!r} is not a module's name or the end of one; "
                "other expressions are not evaluated here."
            )
    return {pattern: check(value, f"{name}[{pattern[:60]!r}]") for pattern, value in given.items()}


def _by_pattern(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    """The first that matches the whole path, or its end from a dot on, as in PEFT (get_pattern_key)."""
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", path):
            return value
    return default


def _rank(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1 << 16:
        raise BadRequest(f"adapter_config.{name}: {str(value)[:40]} is not a rank from 1.")
    return value


def _number(value: Any, name: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value == 0:
        raise BadRequest(f"adapter_config.{name}: {str(value)[:40]} is not a number other than 0.")
    return float(value)
