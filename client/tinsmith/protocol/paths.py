"""How a `tinker://` path, a run id and a checkpoint name are spelled and parsed.

User text becomes part of a path only after it passed here; nothing joins it to a folder.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from tinsmith.protocol.errors import BadRequest

SCHEME = "tinker://"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")
_RUN_ID = re.compile(r"[A-Za-z0-9_\-]{1,64}:train:\d{1,9}")


class CheckpointKind(StrEnum):
    """Path segment of a checkpoint; its value is what stands in the path."""

    TRAINING = "weights"
    SAMPLER = "sampler_weights"
    EXTERNAL = "external_weights"

    @property
    def wire_type(self) -> str:
        return self.name.lower()


def checkpoint_name(name: str, field: str = "path") -> str:
    """The name, if it may stand in a path."""
    if not _NAME.fullmatch(name):
        raise BadRequest(
            f"{field}: {name[:80]!r} is not a checkpoint name. Use 1 to 128 letters, digits, "
            "'_', '-' or '.', beginning with a letter, a digit or '_'."
        )
    return name


def run_id(session_id: str, model_seq_id: int) -> str:
    """The client computes this id itself when it creates a run from a checkpoint."""
    return f"{session_id}:train:{model_seq_id}"


def session_of(run: str) -> str:
    return run.split(":", 1)[0]


def training_request_id(run: str, seq_id: int) -> str:
    """(run, seq_id) is the idempotency key, so it is the request's name too."""
    return f"{run}:{seq_id}"


def sampling_session_id(session_id: str, seq_id: int) -> str:
    return f"{session_id}:sample:{seq_id}"


def custom_loss_id(session_id: str, seq_id: int) -> str:
    return f"{session_id}:loss:{seq_id}"


def sequence_id(request_id: str, index: int) -> str:
    return f"{request_id}:{index}"


@dataclass(frozen=True)
class TinkerPath:
    """`tinker://<run>/<segment>/<name>`."""

    run_id: str
    kind: CheckpointKind
    name: str

    @classmethod
    def parse(cls, text: str, field: str = "path") -> Self:
        parts = text.removeprefix(SCHEME).split("/")
        known = {kind.value for kind in CheckpointKind}
        if (
            not text.startswith(SCHEME)
            or len(parts) != 3
            or not _RUN_ID.fullmatch(parts[0])
            or parts[1] not in known
        ):
            raise BadRequest(
                f"{field}: {text[:120]!r} is not a checkpoint path. Expected "
                f"{SCHEME}<run>/<{'|'.join(sorted(known))}>/<name>."
            )
        return cls(parts[0], CheckpointKind(parts[1]), checkpoint_name(parts[2], field))

    @property
    def checkpoint_id(self) -> str:
        return f"{self.kind.value}/{self.name}"

    def __str__(self) -> str:
        return f"{SCHEME}{self.run_id}/{self.checkpoint_id}"
