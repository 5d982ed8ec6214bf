"""Tensors that arrive as JSON, as the protobuf message that they would have been."""

from typing import Any

import numpy as np

from tinsmith.protocol import wire_pb2 as pb
from tinsmith.protocol.bodies import JsonTensor
from tinsmith.protocol.errors import BadRequest


def fill_tensor(made: pb.Tensor, tensor: JsonTensor, where: str) -> None:
    if tensor.dtype not in ("int64", "float32"):
        raise BadRequest(f"{where}: dtype {tensor.dtype[:20]!r} is not int64 or float32.")
    integers = tensor.dtype == "int64"
    made.dtype = pb.DTYPE_INT64 if integers else pb.DTYPE_FLOAT32
    made.shape.extend(tensor.shape or [])
    values = to_bytes(tensor.data, "<i8" if integers else "<f4", where)
    if tensor.sparse_crow_indices is None:
        made.dense = values
    else:
        made.sparse_csr.values = values
        made.sparse_csr.crow_indices = to_bytes(tensor.sparse_crow_indices, "<i8", where)
        made.sparse_csr.col_indices = to_bytes(tensor.sparse_col_indices or [], "<i8", where)


def to_bytes(values: list[Any], dtype: str, where: str) -> bytes:
    try:
        return np.asarray(values, dtype).tobytes()
    except (OverflowError, ValueError):
        raise BadRequest(f"{where}: a value does not fit {np.dtype(dtype)}.") from None
