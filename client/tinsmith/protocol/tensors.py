"""Between the protobuf messages of the wire and numpy arrays. Says by name what does not decode.

Legend: N input tokens, K candidates per position, rows x cols of a CSR matrix.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from tinsmith.protocol import wire_pb2 as pb
from tinsmith.protocol.errors import BadRequest, Unprocessable
from tinsmith.protocol.provenance import check_spans

Array = npt.NDArray[np.generic]
IntArray = npt.NDArray[np.int32]
IndexArray = npt.NDArray[np.int64]

_DTYPES: dict[int, np.dtype[np.generic]] = {
    pb.DTYPE_FLOAT32: np.dtype("<f4"),
    pb.DTYPE_INT64: np.dtype("<i8"),
    pb.DTYPE_INT32: np.dtype("<i4"),
}
MAX_DENSE_CELLS = 1 << 28


@dataclass(frozen=True)
class DecodedDatum:
    tokens: IntArray
    inputs: dict[str, Array]


def parse_forward_backward(body: bytes) -> pb.ForwardBackwardRequest:
    try:
        return pb.ForwardBackwardRequest.FromString(body)
    except DecodeError:
        raise Unprocessable(
            "body: not a ForwardBackwardRequest protobuf (is it truncated?)"
        ) from None


def num_tokens(request: pb.ForwardBackwardRequest) -> int:
    return sum(
        len(chunk.encoded_text.tokens) // 4 for datum in request.data for chunk in datum.model_input
    )


def decode_data(request: pb.ForwardBackwardRequest) -> list[DecodedDatum]:
    return [_datum(datum, f"data[{index}]") for index, datum in enumerate(request.data)]


def loss_config(request: pb.ForwardBackwardRequest) -> dict[str, float | str]:
    """The typed map when it is there, else the older map of numbers."""
    if request.loss_fn_config_v2:
        return {
            key: value.text if value.WhichOneof("value") == "text" else value.number
            for key, value in request.loss_fn_config_v2.items()
        }
    return dict(request.loss_fn_config)


def _datum(datum: pb.Datum, where: str) -> DecodedDatum:
    pieces = []
    for chunk in datum.model_input:
        kind = chunk.WhichOneof("chunk")
        if kind != "encoded_text":
            raise BadRequest(
                f"{where}.model_input: chunks of type {kind!r} are not supported by text models; "
                "send encoded_text chunks."
            )
        pieces.append(_raw(chunk.encoded_text.tokens, np.dtype("<i4"), f"{where}.model_input"))
    tokens = np.concatenate(pieces) if pieces else np.empty(0, np.int32)
    inputs = {
        name: decode_tensor(tensor, f"{where}.loss_fn_inputs.{name}")
        for name, tensor in datum.loss_fn_inputs.items()
    }
    if "target_tokens" in inputs:
        check_spans(datum, tokens.size, inputs["target_tokens"].shape[0], where)
    return DecodedDatum(tokens.astype(np.int32), inputs)


def decode_tensor(tensor: pb.Tensor, where: str) -> Array:
    """Dense array; an absent shape means one dimension."""
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise BadRequest(f"{where}: dtype {tensor.dtype} is not float32, int64 or int32.")
    shape = tuple(tensor.shape)
    if any(size < 0 for size in shape) or int(np.prod(shape, dtype=object)) > MAX_DENSE_CELLS:
        raise BadRequest(f"{where}: shape {list(shape)} is negative or too large.")
    if tensor.WhichOneof("encoding") == "sparse_csr":
        return _densify(tensor.sparse_csr, dtype, shape, where)
    flat = _raw(tensor.dense, dtype, where)
    if not shape:
        return flat
    if flat.size != int(np.prod(shape)):
        raise BadRequest(f"{where}: {flat.size} values do not fill the shape {list(shape)}.")
    return flat.reshape(shape)


def _raw(data: bytes, dtype: np.dtype[np.generic], where: str) -> Array:
    if len(data) % dtype.itemsize:
        raise BadRequest(f"{where}: {len(data)} bytes are not a whole number of {dtype} values.")
    return np.frombuffer(data, dtype)


def _densify(
    csr: pb.SparseCsr, dtype: np.dtype[np.generic], shape: tuple[int, ...], where: str
) -> Array:
    index = np.dtype("<i8")
    values = _raw(csr.values, dtype, where)
    crow = _raw(csr.crow_indices, index, where).astype(np.int64)
    col = _raw(csr.col_indices, index, where).astype(np.int64)
    if (
        len(shape) != 2
        or crow.size != shape[0] + 1
        or crow[0] != 0
        or crow[-1] != values.size
        or col.size != values.size
        or (np.diff(crow) < 0).any()
        or (col.size and (col.min() < 0 or col.max() >= shape[1]))
    ):
        raise BadRequest(f"{where}: the CSR indices do not describe a {list(shape)} matrix.")
    dense = np.zeros(shape, dtype)
    dense[np.repeat(np.arange(shape[0]), np.diff(crow)), col] = values
    return dense


def target_cells(tensor: pb.Tensor, num_rows: int) -> tuple[IndexArray, IndexArray]:
    """Row and token of every cell that a [num_rows, K] tensor holds, in its order; -1 asks nothing."""
    where = "target_prompt_logprobs"
    shape = tuple(tensor.shape)
    if tensor.dtype != pb.DTYPE_INT64 or len(shape) != 2 or shape[0] != num_rows:
        raise BadRequest(
            f"{where}: it must be int64 of shape [{num_rows}, K], one row per prompt token after the "
            f"first; this one has shape {list(shape)}."
        )
    decode_tensor(tensor, where)  # checks that the values fill the shape
    if tensor.WhichOneof("encoding") == "sparse_csr":
        ends = _raw(tensor.sparse_csr.crow_indices, np.dtype("<i8"), where).astype(np.int64)
        tokens = _raw(tensor.sparse_csr.values, np.dtype("<i8"), where).astype(np.int64)
        return np.repeat(np.arange(num_rows), np.diff(ends)), tokens
    tokens = _raw(tensor.dense, np.dtype("<i8"), where).astype(np.int64)
    return np.repeat(np.arange(num_rows), shape[1]), tokens


def in_cells(tensor: pb.Tensor, values: npt.NDArray[np.float32]) -> pb.Tensor:
    """The values in the layout of the tensor whose cells they belong to."""
    made = pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=tensor.shape)
    data = values.astype("<f4").tobytes()
    if tensor.WhichOneof("encoding") == "sparse_csr":
        made.sparse_csr.CopyFrom(tensor.sparse_csr)
        made.sparse_csr.values = data
    else:
        made.dense = data
    return made


def encode_tensor(array: Array) -> pb.Tensor:
    """Dense tensor: integers travel as int64, everything else as float32."""
    if np.issubdtype(array.dtype, np.integer):
        return pb.Tensor(
            dense=array.astype("<i8").tobytes(), dtype=pb.DTYPE_INT64, shape=array.shape
        )
    return pb.Tensor(dense=array.astype("<f4").tobytes(), dtype=pb.DTYPE_FLOAT32, shape=array.shape)


Floats = Sequence[npt.NDArray[np.float32]]


def encode_outputs(
    logprobs: Floats, metrics: dict[str, float], more: Mapping[str, Floats] | None = None
) -> pb.ForwardBackwardOutput:
    """One output per datum, in order; datums of another trailing shape open another record.

    `more`: further arrays of the same shapes, by name.
    """
    columns = {"logprobs": logprobs} | dict(more or {})
    output = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord", metrics=metrics)
    start = 0
    while start < len(logprobs):
        trailing = logprobs[start].shape[1:]
        end = start
        while end < len(logprobs) and logprobs[end].shape[1:] == trailing:
            end += 1
        fields = {name: _field(rows[start:end], trailing) for name, rows in columns.items()}
        output.loss_fn_outputs.append(
            pb.ArrayRecord(type_tag="ArrayRecord", fields=fields, num_datums=end - start)
        )
        start = end
    return output


def _field(rows: Floats, trailing: tuple[int, ...]) -> pb.BatchedTensor:
    parts = [np.ascontiguousarray(row, "<f4").tobytes() for row in rows]
    offsets = np.cumsum([0] + [len(part) for part in parts]).astype("<i8")
    return pb.BatchedTensor(
        data=b"".join(parts),
        offsets=offsets.tobytes(),
        dtype=pb.DTYPE_FLOAT32,
        trailing_shape=trailing,
    )


def decode_outputs(output: pb.ForwardBackwardOutput) -> list[dict[str, Array]]:
    """Per datum, its named arrays (the inverse of `encode_outputs`)."""
    rows: list[dict[str, Array]] = []
    for record in output.loss_fn_outputs:
        fields = {name: _split(tensor, name) for name, tensor in record.fields.items()}
        rows += [
            {name: parts[index] for name, parts in fields.items()}
            for index in range(record.num_datums)
        ]
    return rows


def _split(tensor: pb.BatchedTensor, where: str) -> list[Array]:
    dtype = _DTYPES[tensor.dtype]
    offsets = np.frombuffer(tensor.offsets, "<i8")
    trailing = tuple(tensor.trailing_shape)
    return [
        _raw(tensor.data[first:last], dtype, where).reshape(-1, *trailing)
        for first, last in itertools.pairwise(offsets)
    ]
