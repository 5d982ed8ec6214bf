"""LoRA adapters: which modules they touch, how they begin, how PEFT spells them.

Every adapter of the service has alpha 32, so its scale is 32 / rank and one learning rate suits
every rank (tinker-docs, "LoRA primer"). A begins uniform as in PEFT, B begins zero: an untrained
adapter is the base model.
"""

import math
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.values import InvalidInput

ALPHA = 32.0
_PREFIX = "base_model.model."


class Adapter:
    """`pairs`: module path -> (A [rank, in], B [out, rank]), fp32."""

    def __init__(
        self, rank: int, trains: Mapping[str, bool], pairs: dict[str, tuple[Tensor, Tensor]]
    ):
        self.rank, self.trains, self.pairs = rank, dict(trains), pairs
        self.scale = ALPHA / rank

    @classmethod
    def create(
        cls,
        model: BaseModel,
        *,
        rank: int,
        seed: int,
        train_attn: bool = True,
        train_mlp: bool = True,
        train_unembed: bool = True,
    ) -> Self:
        """The seed alone decides A: its generator is the adapter's own, on the CPU."""
        if rank < 1:
            raise InvalidInput(f"lora_config.rank: {rank} is not at least 1.")
        trains = {"attn": train_attn, "mlp": train_mlp, "unembed": train_unembed}
        generator = torch.Generator().manual_seed(seed)
        pairs = {}
        for path in model.paths(trains):
            out_features, in_features = model.shape(path)
            bound = math.sqrt(1 / in_features)  # kaiming_uniform with a = sqrt(5)
            a = torch.empty(rank, in_features).uniform_(-bound, bound, generator=generator)
            b = torch.zeros(out_features, rank)
            pairs[path] = tuple(w.to(model.device).requires_grad_() for w in (a, b))
        if not pairs:
            raise InvalidInput(
                "lora_config: nothing to train; set one of train_attn, train_mlp, train_unembed."
            )
        return cls(rank, trains, pairs)  # type: ignore[arg-type]

    def parameters(self) -> dict[str, Tensor]:
        """By PEFT's names, in a fixed order."""
        named = {}
        for path, (a, b) in self.pairs.items():
            named[f"{_PREFIX}{path}.lora_A.weight"] = a
            named[f"{_PREFIX}{path}.lora_B.weight"] = b
        return named

    def peft_config(self, base_model: str) -> dict[str, Any]:
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "r": self.rank,
            "lora_alpha": ALPHA,
            "lora_dropout": 0.0,
            "bias": "none",
            "inference_mode": True,
            "target_modules": sorted({path.rsplit(".", 1)[-1] for path in self.pairs}),
        }

    @classmethod
    def from_tensors(
        cls,
        model: BaseModel,
        rank: int,
        trains: Mapping[str, bool],
        tensors: Mapping[str, Tensor],
        *,
        trainable: bool,
    ) -> Self:
        """The inverse of `parameters`; refuses tensors of another model's shape."""
        pairs = {}
        for path in model.paths(trains):
            out_features, in_features = model.shape(path)
            names = (f"{_PREFIX}{path}.lora_A.weight", f"{_PREFIX}{path}.lora_B.weight")
            shapes = ((rank, in_features), (out_features, rank))
            pair = []
            for name, shape in zip(names, shapes, strict=True):
                if name not in tensors or tuple(tensors[name].shape) != shape:
                    raise InvalidInput(f"path: {name} is missing or not of shape {list(shape)}.")
                weight = tensors[name].to(model.device, torch.float32, copy=True)
                pair.append(weight.requires_grad_(trainable))
            pairs[path] = (pair[0], pair[1])
        return cls(rank, trains, pairs)


FrozenAdapter = Adapter
