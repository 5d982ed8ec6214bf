"""A frozen base model and its packed forward pass.

Any decoder-only model of transformers whose linear maps are `nn.Linear`. Whether this engine computes
the same logits as transformers is not assumed but probed when the model is loaded.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from tinsmith_worker.engine.packed import (
    ATTENTION,
    MIN_ROWS,
    LoRALinear,
    Pass,
    adapters_on,
    running,
)

_PLACES = {
    "attn": ("self_attn", "attn", "attention", "self_attention"),
    "mlp": ("mlp", "feed_forward", "ffn"),
}
_PROBE_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.25, torch.float16: 0.1}


class ModelRefused(Exception):
    """This engine cannot serve the model; the sentence says why."""


class BaseModel:
    def __init__(self, model: Any, name: str, tokenizer: Any) -> None:
        self._model, self.name, self.tokenizer = model, name, tokenizer
        config = model.config
        self.device: torch.device = model.device
        self.family: str = config.model_type
        self.vocab_size: int = config.vocab_size
        self.hidden_size: int = config.hidden_size
        self.max_context_length: int = config.max_position_embeddings
        self.eos_token_ids = _eos_ids(model, tokenizer)
        self._places = _wrap_linears(model, name)
        self._head: LoRALinear = model.get_output_embeddings()
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self._logit_factor = getattr(config, "logit_scale", None) or 1.0
        self._logit_factor /= getattr(config, "logits_scaling", None) or 1.0

    @classmethod
    def load(
        cls, folder: str, *, name: str, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Self:
        """Read, freeze, probe. Raises ModelRefused with one sentence."""
        if Path(folder).is_dir() and not Path(folder, "config.json").is_file():
            raise ModelRefused(f"{name}: {folder} holds no config.json; is it a model's folder?")
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, attn_implementation="sdpa"
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelRefused(f"{name}: {folder} cannot be loaded: {_line(error)}") from error
        model = model.to(device).eval().requires_grad_(False)
        probe = torch.arange(8, device=device) % model.config.vocab_size
        with torch.no_grad():
            expected = model(probe[None]).logits[0].float()
        model.set_attn_implementation(ATTENTION)
        loaded = cls(model, name, _tokenizer(folder))
        loaded._check(probe.tolist(), expected, _PROBE_TOLERANCE.get(dtype, 1e-2))
        return loaded

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self._model.parameters())

    def paths(self, trains: Mapping[str, bool]) -> Iterator[str]:
        """Module paths of the linear maps that such an adapter touches, in the model's order."""
        return (path for path, (place, _) in self._places.items() if trains[place])

    def shape(self, path: str) -> tuple[int, int]:
        base = self._places[path][1].base
        return base.out_features, base.in_features

    def hidden(self, current: Pass) -> Tensor:
        """Last hidden states [N, hidden] of the pass; caches have grown by its tokens after it."""
        tokens = [token for segment in current.segments for token in segment.tokens]
        positions = [
            segment.first_position + offset
            for segment in current.segments
            for offset in range(len(segment.tokens))
        ]
        with running(current):
            output = self._model.base_model(
                input_ids=torch.tensor([tokens], device=self.device),
                position_ids=torch.tensor([positions], device=self.device),
                use_cache=False,
            )
        for segment in current.segments:
            if segment.cache is not None:
                segment.cache.length += len(segment.tokens)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def logits(self, hidden_RH: Tensor, adapter_rows: Sequence[tuple[slice, Any]]) -> Tensor:
        """fp32 logits [R, vocab] of some rows, each under its adapter."""
        count = hidden_RH.shape[0]
        spare = max(0, MIN_ROWS - count)
        with adapters_on(adapter_rows):
            padded = torch.nn.functional.pad(hidden_RH, (0, 0, 0, spare)) if spare else hidden_RH
            logits: Tensor = self._head(padded)[:count].float() * self._logit_factor
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits

    def _check(self, tokens: list[int], expected: Tensor, tolerance: float) -> None:
        from tinsmith_worker.engine.packed import Segment

        with torch.no_grad():
            try:
                found = self.logits(self.hidden(Pass([Segment(tokens)])), ())
            except NotImplementedError as error:
                raise ModelRefused(f"{self.name}: {error} are not supported.") from error
        worst = float((found - expected).abs().max())
        if not worst <= tolerance * max(1.0, float(expected.abs().max())):
            raise ModelRefused(
                f"{self.name}: a model of type {self.family!r} computes its logits in a way that this "
                f"engine does not reproduce (largest difference {worst:.3g})."
            )


def _wrap_linears(model: nn.Module, name: str) -> dict[str, tuple[str, LoRALinear]]:
    head = model.get_output_embeddings()  # type: ignore[operator]
    places = {}
    for path, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear):
            continue
        place = "unembed" if module is head else _place(path)
        if place is None:
            continue
        wrapped = LoRALinear(module, path)
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, wrapped)
        places[path] = (place, wrapped)
    found = {place for place, _ in places.values()}
    if found != {"attn", "mlp", "unembed"}:
        raise ModelRefused(
            f"{name}: its linear maps are not those of a dense decoder (found {sorted(found)}); "
            "mixtures of experts and encoder models are not supported."
        )
    return places


def _place(path: str) -> str | None:
    parts = path.split(".")
    return next((place for place, names in _PLACES.items() if set(names) & set(parts)), None)


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    ids = getattr(model.generation_config, "eos_token_id", None)
    if ids is None:
        ids = model.config.eos_token_id
    found = set(ids if isinstance(ids, list) else [ids])
    if tokenizer is not None:
        found.add(tokenizer.eos_token_id)
    return frozenset(found - {None})


def _tokenizer(folder: str) -> Any:
    """None for a folder without one: such a model takes token ids, and stop strings are refused."""
    if not Path(folder, "tokenizer.json").is_file() and Path(folder).is_dir():
        return None
    return AutoTokenizer.from_pretrained(folder)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
