"""Any decoder-only model of transformers whose linear maps are `nn.Linear`.

Its modules stay; its linear maps get adapters, and its attention is ours. Slower than the fused
engine, and there for every family that it does not know.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from tinsmith_worker.engine.attention import attention
from tinsmith_worker.engine.base_model import BaseModel, ModelRefused, Unsupported
from tinsmith_worker.engine.linear import LinearGroup, lora_linear
from tinsmith_worker.engine.packed import Pass, current_pass, running
from tinsmith_worker.engine.wide_linear import unembedding

_ATTENTION = "tinsmith_packed"
_PLACES = {
    "attn": ("self_attn", "attn", "attention", "self_attention"),
    "mlp": ("mlp", "feed_forward", "ffn"),
}


class _Linear(nn.Module):
    def __init__(self, group: LinearGroup) -> None:
        super().__init__()
        self.group = group

    def forward(self, x_1NI: Tensor) -> Tensor:
        return lora_linear(x_1NI[0], self.group, current_pass())[None]


class GenericModel(BaseModel):
    engine = "generic"

    def __init__(self, model: Any, name: str, tokenizer: Any) -> None:
        super().__init__(model, name, tokenizer)
        self._model = model
        head = model.get_output_embeddings()
        for path, module in list(model.named_modules()):
            place = _place(path) if module is not head else "unembed"
            if isinstance(module, nn.Linear) and place is not None:
                if place == "unembed":
                    group = unembedding((path,), module.weight, module.bias)
                    self.head = group
                else:
                    group = LinearGroup((path,), [module.weight], [module.bias])
                wrapped = _Linear(group)
                parent, _, child = path.rpartition(".")
                setattr(model.get_submodule(parent), child, wrapped)
                self._places[path] = place
                self._groups.append(group)
        found = set(self._places.values())
        if found != {"attn", "mlp", "unembed"}:
            raise ModelRefused(
                f"{name}: its linear maps are not those of a dense decoder (found {sorted(found)}); "
                "mixtures of experts and encoder models are not supported."
            )
        model.set_attn_implementation(_ATTENTION)

    def _hidden(self, current: Pass) -> Tensor:
        with running(current):
            output = self._model.base_model(
                input_ids=torch.tensor([current.tokens], device=self.device),
                position_ids=torch.tensor([current.positions], device=self.device),
                use_cache=False,
            )
        hidden_NH: Tensor = output.last_hidden_state[0]
        return hidden_NH


def _place(path: str) -> str | None:
    parts = path.split(".")
    return next((place for place, names in _PLACES.items() if set(names) & set(parts)), None)


def _packed_attention(
    module: nn.Module,
    query_1HND: Tensor,
    key_1GND: Tensor,
    value_1GND: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Transformers' attention interface."""
    if softcap is not None:
        raise Unsupported("attention softcaps")
    query, key, value = (one[0].transpose(0, 1) for one in (query_1HND, key_1GND, value_1GND))
    out_NHD = attention(
        query,
        key,
        value,
        current_pass(),
        int(module.layer_idx),  # type: ignore[arg-type]
        scale=query_1HND.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
    )
    return out_NHD[None], None


AttentionInterface.register(_ATTENTION, _packed_attention)
