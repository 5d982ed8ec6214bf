"""Weights as they leave the service: a PEFT adapter under Tinker's names, encrypted when asked.

Tinker calls the unembedding `model.unembed_tokens` whatever the model calls it, and the tools that merge
or serve its adapters look for that name.
"""

import json
from collections.abc import Sequence
from typing import Any

import pyrage
from safetensors.torch import load, save

from tinsmith_worker import checkpoint_files
from tinsmith_worker.engine.optimizer import RunState
from tinsmith_worker.engine.values import InvalidInput

_HEAD, _TINKERS_HEAD = ".lm_head.", ".model.unembed_tokens."


def pack_external(
    state: RunState, base_model: str, recipients: Sequence[Any] | None
) -> dict[str, bytes]:
    """With recipients, each of them can decrypt every file alone (age-encryption.org/v1)."""
    packed = checkpoint_files.pack(state, base_model, optimizer=False)
    files = {
        checkpoint_files.CONFIG: _renamed_config(packed[checkpoint_files.CONFIG]),
        checkpoint_files.WEIGHTS: _renamed_weights(packed[checkpoint_files.WEIGHTS]),
    }
    if recipients is None:
        return files
    return {f"{name}.age": pyrage.encrypt(data, recipients) for name, data in files.items()}


def parse_recipients(texts: Sequence[str] | None) -> list[Any] | None:
    """Before anything is copied or written; raises InvalidInput naming the one that does not parse."""
    if texts is None:
        return None
    return [_recipient(text, index) for index, text in enumerate(texts)]


def _renamed_weights(data: bytes) -> bytes:
    tensors = {name.replace(_HEAD, _TINKERS_HEAD): tensor for name, tensor in load(data).items()}
    return save(tensors, metadata={"format": "pt"})


def _renamed_config(data: bytes) -> bytes:
    config = json.loads(data)
    config["target_modules"] = sorted(
        "unembed_tokens" if name == "lm_head" else name for name in config["target_modules"]
    )
    return json.dumps(config, indent=1).encode()


def _recipient(text: str, index: int) -> Any:
    kind = pyrage.x25519 if text.startswith("age1") else pyrage.ssh
    try:
        return kind.Recipient.from_str(text)
    except pyrage.RecipientError:
        raise InvalidInput(
            f"age_encryption_recipients[{index}]: {text[:60]!r} is neither an age public key "
            "(age1...) nor an SSH public key."
        ) from None
