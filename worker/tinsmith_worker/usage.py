"""The tokens of a finished sampling request, counted from what went in and what came out."""

from dataclasses import dataclass

import msgspec
from tinsmith.protocol import wire_pb2 as pb
from tinsmith.protocol.jobs import Content, Result


class _Prompt(msgspec.Struct):
    """Of a SampleJob the one field that counts; the rest is skipped as it is read."""

    prompt: list[int]


@dataclass(frozen=True)
class SampleUsage:
    prefill: int = 0
    cached: int = 0
    sampled: int = 0


def sample_usage(body: bytes, result: Result) -> SampleUsage:
    """The prompt counts once, however many sequences were drawn from it. A failure counts nothing."""
    if result.failed or result.content is not Content.SAMPLE:
        return SampleUsage()
    response = pb.SampleResponse.FromString(result.data)
    prompt = len(msgspec.json.decode(body, type=_Prompt).prompt)
    cached = min(response.prompt_cache_hit_tokens, prompt)
    sampled = sum(len(sequence.tokens) // 4 for sequence in response.sequences)  # int32 each
    return SampleUsage(prefill=prompt - cached, cached=cached, sampled=sampled)
