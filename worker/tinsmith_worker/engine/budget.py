"""How many tokens fit into memory: measured on the model, not guessed.

One pass of a small adapter is run and what it keeps for its backward pass is added up. Attention's
probabilities grow with the square of a sequence, so of them the most that is ever kept is assumed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tinsmith_worker.engine.adapter import Adapter, Gradient
from tinsmith_worker.engine.attention import MOST_KEPT_KEYS
from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.head import HEAD_ROWS
from tinsmith_worker.engine.kv_pool import BLOCK
from tinsmith_worker.engine.memory import available_bytes
from tinsmith_worker.engine.packed import Segment

_PROBED_TOKENS = 128
_PROBED_RANK = 32
_TRANSIENT = 1.5  # a pass's peak over what it keeps: gradients on their way through one layer
_LOGIT_COPIES = (
    3 * 4 + 2
)  # bytes of each logit of a chunk: fp32 and back, twice, and the model's own
_MIN_BLOCKS = 16
_CACHE_SHARE, _TRAINING_SHARE = 0.25, 0.5


@dataclass(frozen=True)
class Budget:
    """What one model may use; the rest is for adapters, optimizers and whoever else is here."""

    max_blocks: int
    """Blocks of keys and values."""
    memory_tokens: int
    """Tokens of a training pass that fit without checkpoints."""
    bytes_per_token: int
    """Of a training pass, as measured."""


def measure(model: BaseModel, *, kv_cache_gib: float, shares: int) -> Budget:
    """`shares`: how many models there are to share the memory; `kv_cache_gib` 0: a quarter of it."""
    free = available_bytes(model.device) / shares
    cache = kv_cache_gib * 2**30 / shares if kv_cache_gib else _CACHE_SHARE * free
    blocks = max(_MIN_BLOCKS, int(cache / (model.kv_bytes_per_token * BLOCK)))
    per_token = kept_bytes_per_token(model)
    room = _TRAINING_SHARE * free - HEAD_ROWS * model.vocab_size * _LOGIT_COPIES
    return Budget(blocks, max(BLOCK, int(room / (_TRANSIENT * per_token))), per_token)


def kept_bytes_per_token(model: BaseModel) -> int:
    """What a training pass keeps for each token until it has gone back."""
    adapter = Adapter.create(model, rank=min(_PROBED_RANK, model.hidden_size), seed=0)
    tokens = [index % model.vocab_size for index in range(_PROBED_TOKENS)]
    segment = Segment(tokens, adapter, gradient=Gradient(adapter))
    kept: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(_noting(kept, model), _as_it_was):
        model.hidden(model.new_pass([segment]))
    probabilities = model.attention_bytes_per_key * MOST_KEPT_KEYS
    return sum(kept.values()) // _PROBED_TOKENS + probabilities


def _noting(kept: dict[int, int], model: BaseModel) -> Callable[[Tensor], Tensor]:
    """Counts each storage once, and none of the model's own."""
    frozen = model.storages

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    return note


def _as_it_was(tensor: Tensor) -> Tensor:
    return tensor
