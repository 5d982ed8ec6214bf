"""A frozen base model: what the engine asks of it, and how one is loaded.

Two implementations stand behind one class: `FusedModel`, this package's own layers for the families
that people train, and `GenericModel`, transformers' modules for everything else. Whether either
computes the same logits as transformers is not assumed but probed when the model is loaded.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import structlog
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tinsmith_worker.engine.adapter_mix import AdapterMixes
from tinsmith_worker.engine.linear import LinearGroup, Paths, lora_linear
from tinsmith_worker.engine.memory import keep_freed_memory
from tinsmith_worker.engine.numerics import Numerics
from tinsmith_worker.engine.packed import AdapterRows, Pass, Segment
from tinsmith_worker.engine.token_bytes import byte_table

_log = structlog.get_logger()
_PROBE_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.25, torch.float16: 0.1}


class ModelRefused(Exception):
    """This engine cannot serve the model; the sentence says why."""


class Unsupported(Exception):
    """An implementation cannot compute this model; the message names what it lacks."""


@dataclass(frozen=True)
class HeadRows:
    """Rows that the head takes, each under its adapter."""

    adapter_rows: Sequence[AdapterRows]
    min_rows: int
    mixed: None = None


class BaseModel(ABC):
    engine: str
    """fused or generic"""

    def __init__(self, model: Any, name: str, tokenizer: Any) -> None:
        config = model.config
        self.name, self.tokenizer = name, tokenizer
        self.numerics = Numerics.fast()
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.family: str = config.model_type
        self.vocab_size: int = config.vocab_size
        self.hidden_size: int = config.hidden_size
        self.max_context_length: int = config.max_position_embeddings
        self.tied_head = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        self.num_parameters = sum(one.numel() for one in model.parameters())
        self.kv_bytes_per_token = _kv_bytes(config, model.dtype)
        self.attention_bytes_per_key: int = (
            config.num_hidden_layers * config.num_attention_heads * model.dtype.itemsize
        )
        """What all layers' probabilities of one query take for each key."""
        self.eos_token_ids = _eos_ids(model, tokenizer)
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self._logit_factor = getattr(config, "logit_scale", None) or 1.0
        self._logit_factor /= getattr(config, "logits_scaling", None) or 1.0
        self.memory_tokens = 1 << 20
        """Tokens of a training pass that fit into memory without checkpoints, once it was measured."""
        self.head: LinearGroup
        self._places: dict[str, str] = {}
        self._groups: list[LinearGroup] = []
        self._mixes = AdapterMixes()
        self._shares_tokens: dict[int, bool] = {}

    @abstractmethod
    def _hidden(self, current: Pass) -> Tensor: ...

    def settle_numerics(self, exact: bool) -> None:
        """Exact: find out on this model's own weights what that takes here."""
        if exact:
            by_shape = {group.weight.shape: group for group in self._groups}
            products = [(group.in_features, group.forward) for group in by_shape.values()]
            self.numerics = Numerics.probe(products, self.device, self.dtype)
            if self.dtype != torch.float32:  # the head's adapter is added in fp32
                head = [(self.head.in_features, self.head.forward)]
                self.numerics &= Numerics.probe(head, self.device, torch.float32)

    @property
    def storages(self) -> set[int]:
        """Where the frozen weights lie."""
        weights = [one for group in self._groups for one in (group.weight, group.bias)]
        return {one.untyped_storage().data_ptr() for one in weights if one is not None}

    @cached_property
    def token_bytes(self) -> list[bytes] | None:
        """What each token spells; None where tokens do not say."""
        return byte_table(self.tokenizer)

    def shares_tokens_with(self, other: "BaseModel") -> bool:
        """Whether both mean the same by every id that both have."""
        if id(other) not in self._shares_tokens:
            width = min(self.vocab_size, other.vocab_size)
            mine, theirs = (_vocabulary(one, width) for one in (self, other))
            same_size = self.vocab_size == other.vocab_size
            self._shares_tokens[id(other)] = mine == theirs and (mine is not None or same_size)
        return self._shares_tokens[id(other)]

    # What an adapter must know

    def groups(self) -> list[Paths]:
        return [group.paths for group in self._groups]

    def place(self, path: str) -> str:
        return self._places[path]

    def shape(self, path: str) -> tuple[int, int]:
        group = next(one for one in self._groups if path in one.paths)
        return group.sizes[group.paths.index(path)], group.in_features

    # What training and sampling ask

    def new_pass(self, segments: Sequence[Segment], *, checkpoint: bool = False) -> Pass:
        return Pass(
            segments,
            min_rows=self.numerics.min_rows,
            mixes=self._mixes if self.numerics.mixes else None,
            dtype=self.dtype,
            checkpoint=checkpoint,
        )

    def hidden(self, current: Pass) -> Tensor:
        """Last hidden states [N, hidden] of the pass; caches have grown by its tokens after it."""
        hidden_NH = self._hidden(current)
        current.grow_caches()
        return hidden_NH

    def unembed(self, hidden_RH: Tensor, adapter_rows: Sequence[AdapterRows]) -> Tensor:
        """What the head's product makes of some rows, each under its adapter, in fp32."""
        count, least = hidden_RH.shape[0], self.numerics.min_rows
        spare = max(0, least - count)
        wide_RH = hidden_RH.float()
        padded = torch.nn.functional.pad(wide_RH, (0, 0, 0, spare)) if spare else wide_RH
        return lora_linear(padded, self.head, HeadRows(adapter_rows, least))[:count]

    @property
    def plain_head(self) -> bool:
        """Whether what `unembed` answers are the logits."""
        return self._softcap is None and self._logit_factor == 1.0

    def finish(self, raw_RV: Tensor) -> Tensor:
        """Logits from what `unembed` answers; may be the same memory."""
        logits_RV = raw_RV
        if self._logit_factor != 1.0:
            logits_RV = logits_RV * self._logit_factor
        if self._softcap is not None:
            logits_RV = torch.tanh(logits_RV / self._softcap) * self._softcap
        return logits_RV

    def slope(self, logits_RV: Tensor) -> Tensor | None:
        """d logits / d raw at these logits; None where it is 1."""
        if self.plain_head:
            return None
        if self._softcap is None:
            return logits_RV.new_tensor(self._logit_factor)
        return (1 - (logits_RV / self._softcap).square()) * self._logit_factor

    def logits(self, hidden_RH: Tensor, adapter_rows: Sequence[AdapterRows]) -> Tensor:
        """fp32 logits [R, vocab] of some rows."""
        return self.finish(self.unembed(hidden_RH, adapter_rows))

    def check(self, tokens: list[int], expected: Tensor) -> None:
        """Raises ModelRefused unless the logits are those of transformers."""
        with torch.no_grad():
            found = self.logits(self.hidden(self.new_pass([Segment(tokens)]))[: len(tokens)], ())
        worst = float((found - expected).abs().max())
        tolerance = _PROBE_TOLERANCE.get(self.dtype, 1e-2)
        if not worst <= tolerance * max(1.0, float(expected.abs().max())):
            raise ModelRefused(
                f"{self.name}: a model of type {self.family!r} computes its logits in a way that this "
                f"engine does not reproduce (largest difference {worst:.3g})."
            )


def load(
    folder: str,
    *,
    name: str,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    exact: bool | None = None,
    fused: bool = True,
) -> BaseModel:
    """Read, freeze, probe. Raises ModelRefused with one sentence.

    `exact` None means: on the CPU. `fused` False keeps to transformers' modules.
    """
    from tinsmith_worker.engine.fused import FusedModel
    from tinsmith_worker.engine.generic import GenericModel

    if device == "cpu":
        keep_freed_memory()
    if Path(folder).is_dir() and not Path(folder, "config.json").is_file():
        raise ModelRefused(f"{name}: {folder} holds no config.json; is it a model's folder?")
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa"
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelRefused(f"{name}: {folder} cannot be loaded: {_line(error)}") from error
    model = model.to(device).eval().requires_grad_(False)
    tokens = (torch.arange(8) % model.config.vocab_size).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([tokens], device=device)).logits[0].float()
    exact = device == "cpu" if exact is None else exact
    arguments = (model, name, _tokenizer(folder))
    if fused and FusedModel.knows(model):
        made: BaseModel = FusedModel(*arguments)
        made.settle_numerics(exact)
        try:
            made.check(tokens, expected)
        except ModelRefused as error:
            _log.warning("fused_engine_differs", model=name, reason=str(error))
        else:
            return made
    try:
        made = GenericModel(*arguments)
        made.settle_numerics(exact)
        made.check(tokens, expected)
    except Unsupported as error:
        raise ModelRefused(f"{name}: {error} are not supported.") from error
    return made


def _vocabulary(model: BaseModel, width: int) -> dict[str, int] | None:
    """Tokens by name below an id; None without a tokenizer."""
    if model.tokenizer is None:
        return None
    names: dict[str, int] = model.tokenizer.get_vocab()
    return {name: index for name, index in names.items() if index < width}


def _kv_bytes(config: Any, dtype: torch.dtype) -> int:
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * dtype.itemsize)


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
