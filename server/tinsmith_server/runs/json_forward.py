"""forward_backward as JSON, for old SDKs and for curl: the same message in another dress."""

from typing import Any

from tinsmith.protocol import wire_pb2 as pb
from tinsmith.protocol.bodies import Addressed, Body, JsonTensor, ModelInput
from tinsmith.protocol.errors import BadRequest
from tinsmith.protocol.json_tensors import fill_tensor, to_bytes


class JsonSpanned(Body, kw_only=True, frozen=True):
    sequence_id: str
    offset: int
    length: int


class JsonSpan(Body, kw_only=True, frozen=True):
    """One of the two."""

    prompt_tokens: JsonSpanned | None = None
    sampled_tokens: JsonSpanned | None = None


class JsonDatum(Body, kw_only=True, frozen=True):
    model_input: ModelInput
    loss_fn_inputs: dict[str, JsonTensor]
    model_input_spans: list[JsonSpan] | None = None
    loss_fn_input_spans: list[JsonSpan] | None = None


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
        made.model_input.add().encoded_text.tokens = to_bytes(chunk.tokens, "<i4", where)
    for name, tensor in datum.loss_fn_inputs.items():
        fill_tensor(made.loss_fn_inputs[name], tensor, f"{where}.loss_fn_inputs.{name}")
    for name in ("model_input_spans", "loss_fn_input_spans"):
        for index, span in enumerate(getattr(datum, name) or ()):
            _fill_span(getattr(made, name).add(), span, f"{where}.{name}[{index}]")


def _fill_span(message: pb.ProvenanceSpan, span: JsonSpan, where: str) -> None:
    if (span.prompt_tokens is None) is (span.sampled_tokens is None):
        raise BadRequest(f"{where}: give prompt_tokens or sampled_tokens.")
    given = span.prompt_tokens or span.sampled_tokens
    assert given is not None
    into = message.prompt_tokens if span.prompt_tokens else message.sampled_tokens
    if not all(-(1 << 63) <= one < 1 << 63 for one in (given.offset, given.length)):
        raise BadRequest(f"{where}: offset and length must be whole numbers of 64 bits.")
    into.sequence_id, into.offset, into.length = given.sequence_id, given.offset, given.length
