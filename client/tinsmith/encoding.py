"""Between the types of the client and the messages of the wire; how a batch is cut and put together."""

import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tinsmith.protocol import wire_pb2 as pb
from tinsmith.protocol.tensors import decode_outputs, decode_tensor, encode_tensor
from tinsmith.spans import encode_spans
from tinsmith.types import (
    Datum,
    ForwardBackwardOutput,
    PromptAltTokens,
    SampledSequence,
    SampleResponse,
    StopReason,
    TensorData,
    TopkLogprobs,
)

_REASONS: dict[int, StopReason] = {pb.STOP_REASON_STOP: "stop", pb.STOP_REASON_LENGTH: "length"}


def encode_datum(datum: Datum) -> pb.Datum:
    try:
        tokens = np.asarray(datum.model_input.to_ints(), "<i4").tobytes()
    except (OverflowError, ValueError, TypeError):
        raise ValueError("model_input: tokens must be integers below 2**31.") from None
    return pb.Datum(
        model_input=[pb.Chunk(encoded_text=pb.EncodedTextChunk(tokens=tokens))],
        loss_fn_inputs={
            name: encode_tensor(tensor.to_numpy()) for name, tensor in datum.loss_fn_inputs.items()
        },
        model_input_spans=encode_spans(datum.model_input_spans),
        loss_fn_input_spans=encode_spans(datum.loss_fn_input_spans),
    )


def cut(data: Sequence[pb.Datum], max_datums: int, max_bytes: int) -> list[list[pb.Datum]]:
    """In order; a datum too large for any chunk goes alone."""
    chunks: list[list[pb.Datum]] = [[]]
    size = 0
    for datum in data:
        datum_size = datum.ByteSize()
        if chunks[-1] and (len(chunks[-1]) >= max_datums or size + datum_size > max_bytes):
            chunks.append([])
            size = 0
        chunks[-1].append(datum)
        size += datum_size
    return chunks


def encode_loss_config(config: Mapping[str, float | str] | None) -> dict[str, pb.LossConfigValue]:
    return {
        key: pb.LossConfigValue(text=value)
        if isinstance(value, str)
        else pb.LossConfigValue(number=value)
        for key, value in (config or {}).items()
    }


def decode_forward_backward(data: bytes) -> ForwardBackwardOutput:
    message = pb.ForwardBackwardOutput.FromString(data)
    rows = [
        {name: TensorData.from_numpy(array) for name, array in row.items()}
        for row in decode_outputs(message)
    ]
    return ForwardBackwardOutput(message.loss_fn_output_type, rows, dict(message.metrics))


# How a metric of several chunks becomes one, by the suffix of its name (wire: 4.8).
_REDUCTIONS: dict[str, Callable[[list[float], list[int]], float]] = {
    "sum": lambda values, sizes: sum(values),
    "mean": lambda values, sizes: statistics.fmean(values, sizes),
    "min": lambda values, sizes: min(values),
    "max": lambda values, sizes: max(values),
    "slack": lambda values, sizes: max(values) - statistics.fmean(values, sizes),
}


def join(outputs: Sequence[ForwardBackwardOutput]) -> ForwardBackwardOutput:
    """The output of a call from those of its chunks, in order."""
    sizes = [len(output.loss_fn_outputs) for output in outputs]
    metrics = {}
    for name in outputs[0].metrics:
        reduce = _REDUCTIONS.get(name.rpartition(":")[2])
        if reduce is not None and all(name in output.metrics for output in outputs):
            metrics[name] = reduce([output.metrics[name] for output in outputs], sizes)
    rows = [row for output in outputs for row in output.loss_fn_outputs]
    return ForwardBackwardOutput(outputs[0].loss_fn_output_type, rows, metrics)


def decode_sample(data: bytes, sequence_ids: Sequence[str]) -> SampleResponse:
    message = pb.SampleResponse.FromString(data)
    return SampleResponse(
        sequences=[
            _sequence(one, sequence_id)
            for one, sequence_id in zip(message.sequences, sequence_ids, strict=True)
        ],
        prompt_logprobs_np=np.frombuffer(message.prompt_logprobs, "<f4")
        if message.HasField("prompt_logprobs")
        else None,
        topk_prompt_logprobs_np=_topk(message.topk_prompt_logprobs)
        if message.HasField("topk_prompt_logprobs")
        else None,
        prompt_cache_hit_tokens=message.prompt_cache_hit_tokens,
        target_prompt_logprobs=_tensor(message.target_prompt_logprobs, "target_prompt_logprobs")
        if message.HasField("target_prompt_logprobs")
        else None,
        prompt_alt_tokens=PromptAltTokens(
            tokens=_tensor(message.prompt_alt_tokens.tokens, "prompt_alt_tokens.tokens"),
            logprobs=_tensor(message.prompt_alt_tokens.logprobs, "prompt_alt_tokens.logprobs"),
        )
        if message.HasField("prompt_alt_tokens")
        else None,
    )


def _tensor(message: pb.Tensor, where: str) -> TensorData:
    return TensorData.from_numpy(decode_tensor(message, where))


def _sequence(message: pb.SampledSequence, sequence_id: str) -> SampledSequence:
    return SampledSequence(
        stop_reason=_REASONS[message.stop_reason],
        sequence_id=sequence_id,
        tokens_np=np.frombuffer(message.tokens, "<i4"),
        logprobs_np=np.frombuffer(message.logprobs, "<f4")
        if message.HasField("logprobs")
        else None,
        topk_logprobs_np=_topk(message.topk_sampled_logprobs)
        if message.HasField("topk_sampled_logprobs")
        else None,
    )


def _topk(message: pb.TopkLogprobs) -> TopkLogprobs:
    shape = (message.length, message.k)
    return TopkLogprobs(
        np.frombuffer(message.token_ids, "<i4").reshape(shape),
        np.frombuffer(message.logprobs, "<f4").reshape(shape),
    )
