"""Provenance spans: which request each token of a datum was prompt or sample of.

They come in pairs, one list over the model input and one over the targets, and each list tiles what it
annotates. Every loss accepts them; `stable_reinforce` needs them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from tinsmith.protocol import wire_pb2 as pb
from tinsmith.protocol.errors import BadRequest

RECORD_SECONDS = 24 * 3600


class Recorded(msgspec.Struct, kw_only=True, frozen=True):
    """What was known of a sequence when it was sampled: enough for a loss that comes later."""

    prompt_length: int
    tokens: bytes  # int32
    logprobs: bytes  # float32

    @property
    def token_ids(self) -> npt.NDArray[np.int32]:
        return np.frombuffer(self.tokens, "<i4")

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        return np.frombuffer(self.logprobs, "<f4")


@dataclass(frozen=True)
class Span:
    """Positions `start` to `start + length` of a datum, which are `offset` on in their sequence."""

    sampled: bool
    sequence_id: str
    start: int
    offset: int
    length: int


def check_spans(datum: pb.Datum, num_tokens: int, num_targets: int, where: str) -> None:
    """Both lists or neither; each as long as what it annotates."""
    given = (len(datum.model_input_spans) > 0, len(datum.loss_fn_input_spans) > 0)
    if not any(given):
        return
    if not all(given):
        raise BadRequest(
            f"{where}: give model_input_spans and loss_fn_input_spans, or neither of them."
        )
    _check_tiling(datum.model_input_spans, num_tokens, f"{where}.model_input_spans")
    _check_tiling(datum.loss_fn_input_spans, num_targets, f"{where}.loss_fn_input_spans")


def _check_tiling(messages: Sequence[pb.ProvenanceSpan], length: int, where: str) -> None:
    total = sum(span.length for span in spans(messages, where))
    if total != length:
        raise BadRequest(f"{where}: they cover {total} positions of {length}.")


def spans(messages: Sequence[pb.ProvenanceSpan], where: str) -> Iterator[Span]:
    start = 0
    for index, message in enumerate(messages):
        kind = message.WhichOneof("span")
        if kind is None:
            raise BadRequest(f"{where}[{index}]: it is neither prompt_tokens nor sampled_tokens.")
        one = message.sampled_tokens if kind == "sampled_tokens" else message.prompt_tokens
        if not one.sequence_id or one.offset < 0 or one.length < 0:
            raise BadRequest(
                f"{where}[{index}]: it needs a sequence_id, an offset and a length from 0."
            )
        yield Span(kind == "sampled_tokens", one.sequence_id, start, one.offset, one.length)
        start += one.length
