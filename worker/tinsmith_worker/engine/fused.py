"""Our own layers, on the frozen weights of the families that people train.

Query, key and value are one product, gate and up another; norms, rotary positions, attention and
gates are the nodes of `ops` and `attention`. The weights and the table of rotary positions come from
transformers' modules, whose names are the same in all these families.

Legend: N rows of the pass, H query heads, G key/value heads, D head size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tinsmith_worker.engine.attention import attention
from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.elementwise import Angles, RMSNorm, gated, rotate, split_rotated
from tinsmith_worker.engine.linear import LinearGroup, lora_linear
from tinsmith_worker.engine.packed import Pass
from tinsmith_worker.engine.wide_linear import unembedding

_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu"}


class FusedModel(BaseModel):
    engine = "fused"

    @staticmethod
    def knows(model: Any) -> bool:
        config = model.config
        activation = getattr(config, "hidden_act", None) or config.hidden_activation
        softcap = getattr(config, "attn_logit_softcapping", None)
        return config.model_type in _FAMILIES and activation in _ACTIVATIONS and softcap is None

    def __init__(self, model: Any, name: str, tokenizer: Any) -> None:
        super().__init__(model, name, tokenizer)
        body = model.model
        self._embed, self._rotary = body.embed_tokens, body.rotary_emb
        self._kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
        self._layers = [
            _Layer(layer, index, model.config) for index, layer in enumerate(body.layers)
        ]
        self._norm = _norm(body.norm, model.config)
        self.head = unembedding(("lm_head",), model.lm_head.weight, model.lm_head.bias)
        for one in self._layers:
            self._places |= dict.fromkeys((*one.qkv.paths, *one.out.paths), "attn")
            self._places |= dict.fromkeys((*one.gate_up.paths, *one.down.paths), "mlp")
            self._groups += [one.qkv, one.out, one.gate_up, one.down]
        self._places["lm_head"] = "unembed"
        self._groups.append(self.head)

    def _hidden(self, current: Pass) -> Tensor:
        x_NH: Tensor = self._embed(torch.tensor(current.tokens, device=self.device))
        tables = self._tables(x_NH, current)
        delta_NH: Tensor | None = None
        for layer in self._layers:
            arguments = (x_NH, delta_NH, tables[layer.kind], current)
            if current.checkpoint and torch.is_grad_enabled():
                x_NH, delta_NH = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                x_NH, delta_NH = layer(*arguments)
        return self._norm(x_NH) if delta_NH is None else self._norm.after(x_NH, delta_NH)[1]

    def _tables(self, x_NH: Tensor, current: Pass) -> dict[str, Angles]:
        """For each kind of layer."""
        positions = torch.tensor([current.positions], device=self.device)
        made = {}
        for kind in self._kinds:
            more = (kind,) if self.family == "gemma3_text" else ()
            cosines, sines = (one[0] for one in self._rotary(x_NH, positions, *more))
            made[kind] = Angles(cosines.contiguous(), sines.contiguous())
        return made


@dataclass
class _Norms:
    before_attention: RMSNorm
    before_mlp: RMSNorm
    after_attention: RMSNorm | None
    after_mlp: RMSNorm | None
    query: RMSNorm | None
    key: RMSNorm | None


class _Layer:
    def __init__(self, layer: Any, index: int, config: Any) -> None:
        attn, mlp = layer.self_attn, layer.mlp
        path = f"model.layers.{index}"
        self.index = index
        self.kind = (getattr(config, "layer_types", None) or ["full_attention"] * (index + 1))[
            index
        ]
        windowed = self.kind == "sliding_attention" or config.model_type == "mistral"
        self.window: int | None = getattr(config, "sliding_window", None) if windowed else None
        self.size: int = attn.head_dim
        self.scale: float = attn.scaling
        self.activation = _ACTIVATIONS[
            getattr(config, "hidden_act", None) or config.hidden_activation
        ]
        self.qkv = _group(f"{path}.self_attn", attn, "q_proj", "k_proj", "v_proj")
        self.out = _group(f"{path}.self_attn", attn, "o_proj")
        self.gate_up = _group(f"{path}.mlp", mlp, "gate_proj", "up_proj")
        self.down = _group(f"{path}.mlp", mlp, "down_proj")
        self.norms = _norms(layer, config)

    def __call__(
        self, x_NH: Tensor, delta_NH: Tensor | None, angles: Angles, current: Pass
    ) -> tuple[Tensor, Tensor]:
        """`delta` is what the layer before adds to x: adding it and taking the norm are one sweep."""
        norms = self.norms
        if delta_NH is None:
            normed_NH = norms.before_attention(x_NH)
        else:
            x_NH, normed_NH = norms.before_attention.after(x_NH, delta_NH)
        qkv = lora_linear(normed_NH, self.qkv, current)
        attended = attention(
            *self._heads(qkv, angles), current, self.index, scale=self.scale, window=self.window
        )
        out = lora_linear(attended.flatten(1), self.out, current)
        out = out if norms.after_attention is None else norms.after_attention(out)
        x_NH, normed_NH = norms.before_mlp.after(x_NH, out)
        inner = lora_linear(normed_NH, self.gate_up, current)
        out = lora_linear(gated(inner, self.activation), self.down, current)
        return x_NH, out if norms.after_mlp is None else norms.after_mlp(out)

    def _heads(self, qkv: Tensor, angles: Angles) -> tuple[Tensor, Tensor, Tensor]:
        heads, groups = (size // self.size for size in self.qkv.sizes[:2])
        if self.norms.query is None or self.norms.key is None:
            return split_rotated(qkv, angles, heads, groups)
        query, key, value = (
            one.unflatten(-1, (-1, self.size)) for one in qkv.split(self.qkv.sizes, -1)
        )
        query, key = self.norms.query(query), self.norms.key(key)
        return rotate(query, angles), rotate(key, angles), value


def _group(path: str, module: Any, *names: str) -> LinearGroup:
    linears = [getattr(module, name) for name in names]
    return LinearGroup(
        tuple(f"{path}.{name}" for name in names),
        [linear.weight for linear in linears],
        [linear.bias for linear in linears],
    )


def _norms(layer: Any, config: Any) -> _Norms:
    attn = layer.self_attn
    query, key = (
        _norm(getattr(attn, name), config) if hasattr(attn, name) else None
        for name in ("q_norm", "k_norm")
    )
    first = _norm(layer.input_layernorm, config)
    second = _norm(layer.post_attention_layernorm, config)
    if config.model_type != "gemma3_text":
        return _Norms(first, second, None, None, query, key)
    before, after = layer.pre_feedforward_layernorm, layer.post_feedforward_layernorm
    return _Norms(first, _norm(before, config), second, _norm(after, config), query, key)


def _norm(module: Any, config: Any) -> RMSNorm:
    gemma = config.model_type == "gemma3_text"
    weight = module.weight.float()
    return RMSNorm(1 + weight if gemma else weight, config.rms_norm_eps, whole=gemma)
