"""Where the tokens of a datum came from: runs of positions, in order, that tile what they annotate."""

from collections.abc import Sequence
from dataclasses import dataclass

from tinsmith.protocol import wire_pb2 as pb


@dataclass(frozen=True, kw_only=True)
class _Span:
    sequence_id: str
    offset: int = 0
    length: int

    def __post_init__(self) -> None:
        if not self.sequence_id or self.offset < 0 or self.length < 0:
            raise ValueError(
                f"{type(self).__name__}: it needs a sequence_id, an offset and a length from 0."
            )


class PromptProvenanceSpan(_Span):
    """Positions `offset` to `offset + length` of the prompt that `sequence_id` was sampled from."""


class SampledProvenanceSpan(_Span):
    """Positions `offset` to `offset + length` of the tokens that `sequence_id` sampled."""


ProvenanceSpans = Sequence[PromptProvenanceSpan | SampledProvenanceSpan]


def check_tiling(spans: ProvenanceSpans, length: int, where: str) -> None:
    total = sum(span.length for span in spans)
    if total != length:
        raise ValueError(f"{where}: the spans cover {total} positions of {length}.")


def encode_spans(spans: ProvenanceSpans | None) -> list[pb.ProvenanceSpan]:
    return [_encode(span) for span in spans or ()]


def _encode(span: PromptProvenanceSpan | SampledProvenanceSpan) -> pb.ProvenanceSpan:
    where = {"sequence_id": span.sequence_id}
    if isinstance(span, SampledProvenanceSpan):
        sampled = pb.SampledProvenanceSpan(**where, offset=span.offset, length=span.length)
        return pb.ProvenanceSpan(sampled_tokens=sampled)
    prompt = pb.PromptProvenanceSpan(**where, offset=span.offset, length=span.length)
    return pb.ProvenanceSpan(prompt_tokens=prompt)
