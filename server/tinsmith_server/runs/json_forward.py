"""forward_backward as JSON, for old SDKs and for curl: the same message in another dress."""

from typing import Any

import numpy as np
from tinsmith.protocol import wire_pb2 as pb
from tinsmith.protocol.bodies import Addressed, Body, ModelInput
from tinsmith.protocol.errors import BadRequest


class JsonTensor(Body, kw_only=True, frozen=True):
    data: list[float]
    dtype: str = "float32"
    shape: list[int] | None = None
    sparse_crow_indices: list[int] | None = None
    sparse_col_indices: list[int] | None = None


class JsonDatum(Body, kw_only=True, frozen=True):
    model_input: ModelInput
    loss_fn_inputs: dict[str, JsonTensor]


class JsonInput(Body, kw_only=True, frozen=True):
    data: list[JsonDatum]
    loss_fn: str
    loss_fn_config: dict[str, Any] | None = None


class JsonForwardBackward(Addressed, kw_only=True, frozen=True):
    forward_backward_input: JsonInput | None = None
    forward_input: JsonInput | None = None
    forward_only: bool = False


def to_message(body: JsonForwardBackward) -> pb.ForwardBackwardRequest:
    given = body.forward_backward_input or body.forward_input
    if given is None:
        raise BadRequest("forward_backward_input: it is missing.")
    message = pb.ForwardBackwardRequest(
        model_id=body.model_id,
        seq_id=body.seq_id,
        loss_fn=given.loss_fn,
        forward_only=body.forward_only or body.forward_input is not None,
    )
    for key, value in (given.loss_fn_config or {}).items():
        if isinstance(value, str):
            message.loss_fn_config_v2[key].text = value
        elif isinstance(value, int | float):
            message.loss_fn_config_v2[key].number = value
        else:
            raise BadRequest(f"loss_fn_config.{key}: neither a number nor a text.")
    for index, datum in enumerate(given.data):
        _add(message, datum, f"data[{index}]")
    return message


def _add(message: pb.ForwardBackwardRequest, datum: JsonDatum, where: str) -> None:
    made = message.data.add()
    for chunk in datum.model_input.chunks:
        if chunk.tokens is None:
            raise BadRequest(f"{where}.model_input: only chunks with tokens are supported.")
        made.model_input.add().encoded_text.tokens = _bytes(chunk.tokens, "<i4", where)
    for name, tensor in datum.loss_fn_inputs.items():
        _fill(made.loss_fn_inputs[name], tensor, f"{where}.loss_fn_inputs.{name}")


def _fill(made: pb.Tensor, tensor: JsonTensor, where: str) -> None:
    if tensor.dtype not in ("int64", "float32"):
        raise BadRequest(f"{where}: dtype {tensor.dtype[:20]!r} is not int64 or float32.")
    integers = tensor.dtype == "int64"
    made.dtype = pb.DTYPE_INT64 if integers else pb.DTYPE_FLOAT32
    made.shape.extend(tensor.shape or [])
    values = _bytes(tensor.data, "<i8" if integers else "<f4", where)
    if tensor.sparse_crow_indices is None:
        made.dense = values
    else:
        made.sparse_csr.values = values
        made.sparse_csr.crow_indices = _bytes(tensor.sparse_crow_indices, "<i8", where)
        made.sparse_csr.col_indices = _bytes(tensor.sparse_col_indices or [], "<i8", where)


def _bytes(values: list[Any], dtype: str, where: str) -> bytes:
    try:
        return np.asarray(values, dtype).tobytes()
    except (OverflowError, ValueError):
        raise BadRequest(f"{where}: a value does not fit {np.dtype(dtype)}.") from None
