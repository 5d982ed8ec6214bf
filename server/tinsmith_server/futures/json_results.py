"""Protobuf results as JSON, for whoever does not accept protobuf."""

import math
from typing import Any

import numpy as np
from tinsmith.protocol import wire_pb2 as pb
from tinsmith.protocol.jobs import Content, Result, encode
from tinsmith.protocol.tensors import decode_outputs, decode_tensor

_REASONS = {pb.STOP_REASON_STOP: "stop", pb.STOP_REASON_LENGTH: "length"}


def as_json(result: Result) -> bytes:
    if result.content is Content.FORWARD_BACKWARD:
        return encode(_forward_backward(pb.ForwardBackwardOutput.FromString(result.data)))
    if result.content is Content.SAMPLE:
        return encode(_sample(pb.SampleResponse.FromString(result.data)))
    return result.data


def _forward_backward(output: pb.ForwardBackwardOutput) -> dict[str, Any]:
    rows = [
        {
            name: {"data": array.ravel().tolist(), "dtype": "float32", "shape": list(array.shape)}
            for name, array in row.items()
        }
        for row in decode_outputs(output)
    ]
    return {
        "loss_fn_output_type": output.loss_fn_output_type,
        "loss_fn_outputs": rows,
        "metrics": dict(output.metrics),
    }


def _sample(response: pb.SampleResponse) -> dict[str, Any]:
    sequences = [
        {
            "stop_reason": _REASONS[one.stop_reason],
            "tokens": np.frombuffer(one.tokens, "<i4").tolist(),
            "logprobs": np.frombuffer(one.logprobs, "<f4").tolist(),
        }
        for one in response.sequences
    ]
    answer: dict[str, Any] = {"type": "sample", "sequences": sequences}
    if response.HasField("prompt_logprobs"):
        scores = np.frombuffer(response.prompt_logprobs, "<f4").tolist()
        answer["prompt_logprobs"] = [None if math.isnan(score) else score for score in scores]
    if response.HasField("topk_prompt_logprobs"):
        answer["topk_prompt_logprobs"] = _topk(response.topk_prompt_logprobs)
    if response.HasField("target_prompt_logprobs"):
        answer["target_prompt_logprobs"] = _tensor(response.target_prompt_logprobs)
    if response.HasField("prompt_alt_tokens"):
        drawn = response.prompt_alt_tokens
        answer["prompt_alt_tokens"] = {
            "tokens": decode_tensor(drawn.tokens, "tokens").tolist(),
            "logprobs": decode_tensor(drawn.logprobs, "logprobs").tolist(),
        }
    return answer


def _tensor(tensor: pb.Tensor) -> dict[str, Any]:
    """As it was asked for: dense, or only the cells that a CSR pattern lists."""
    sparse = tensor.WhichOneof("encoding") == "sparse_csr"
    values = tensor.sparse_csr.values if sparse else tensor.dense
    made: dict[str, Any] = {
        "data": np.frombuffer(values, "<f4").tolist(),
        "dtype": "float32",
        "shape": list(tensor.shape),
    }
    if sparse:
        for name in ("crow_indices", "col_indices"):
            indices = np.frombuffer(getattr(tensor.sparse_csr, name), "<i8")
            made[f"sparse_{name}"] = indices.tolist()
    return made


def _topk(topk: pb.TopkLogprobs) -> list[list[tuple[int, float]] | None]:
    shape = (topk.length, topk.k)
    ids = np.frombuffer(topk.token_ids, "<i4").reshape(shape).tolist()
    scores = np.frombuffer(topk.logprobs, "<f4").reshape(shape).tolist()
    return [
        None if row_scores[:1] == [-99999.0] else list(zip(row_ids, row_scores, strict=True))
        for row_ids, row_scores in zip(ids, scores, strict=True)
    ]
