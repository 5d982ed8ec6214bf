"""A peft LoraConfig as the service's own: a rank, and which parts of the model are trained."""

from typing import Any

ALPHA = 32
PARTS = {
    "train_attn": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "train_mlp": {"gate_proj", "up_proj", "down_proj"},
    "train_unembed": {"lm_head"},
}


def lora_settings(config: Any, rank: int) -> dict[str, Any]:
    """Without the head, as peft's all-linear, unless target_modules names it: where a model's head is
    its embedding too, transformers cannot open an adapter of it for lm_eval.

    Raises ValueError by name for what the service's adapters cannot be.
    """
    if config is None:
        return {"rank": rank} | _parts(None)
    if type(config).__name__ != "LoraConfig":
        raise ValueError(f"peft_config: {type(config).__name__} is not a LoraConfig.")
    _check("lora_alpha", config.lora_alpha, (8, ALPHA), f"the service scales by {ALPHA} / r")
    _check("lora_dropout", config.lora_dropout, (0, 0.0), "the service has no dropout")
    _check("bias", config.bias, ("none",), "biases are frozen")
    for name in ("use_dora", "use_rslora", "modules_to_save", "layers_to_transform"):
        if getattr(config, name, None):
            raise ValueError(f"peft_config.{name}: it is not offered; leave it out.")
    return {"rank": config.r} | _parts(config.target_modules)


def _parts(wanted: Any) -> dict[str, bool]:
    if wanted is None or wanted == "all-linear":
        return {"train_unembed": False}
    names = {str(one).rsplit(".", 1)[-1] for one in wanted}
    found = {part: bool(names & members) for part, members in PARTS.items()}
    complete = set().union(*(members for part, members in PARTS.items() if found[part]))
    if names != complete:
        raise ValueError(
            f"peft_config.target_modules: {sorted(names)}; the service trains whole parts: "
            f"{', '.join('+'.join(sorted(members)) for members in PARTS.values())}."
        )
    return found


def _check(name: str, value: Any, allowed: tuple[Any, ...], reason: str) -> None:
    if value not in allowed:
        raise ValueError(f"peft_config.{name}: {value!r}; {reason}: leave it at {allowed[-1]!r}.")
