"""stable_reinforce: what was known when a datum's tokens were sampled, put beside them.

The rule behind that name is not published. What runs here is a rule of our own (docs/losses.md), which a
run's client is told once, and which TINSMITH_STABLE_REINFORCE=0 refuses.
"""

import numpy as np
from tinsmith.protocol import tensors
from tinsmith.protocol import wire_pb2 as pb
from tinsmith.protocol.errors import BadRequest, Unsupported
from tinsmith.protocol.paths import session_of
from tinsmith.protocol.provenance import Recorded, Span, check_spans, spans

from tinsmith_server.db import TrainingRun
from tinsmith_server.service import Service

STABLE_REINFORCE = "stable_reinforce"
_NOTE = (
    "stable_reinforce: its rule is not published; this service runs one of its own, REINFORCE with "
    "truncated importance weights (see docs/losses.md)."
)
Records = dict[str, Recorded]


async def note_headers(service: Service, run_id: str, loss_fn: str) -> dict[str, str]:
    """A note that the SDK logs, once for each run."""
    if loss_fn != STABLE_REINFORCE or not service.settings.stable_reinforce:
        return {}
    return {"x-deprecation-note": _NOTE} if await service.bus.first_note(run_id) else {}


async def with_recorded(
    service: Service, run: TrainingRun, message: pb.ForwardBackwardRequest
) -> bytes:
    """The request with `logprobs` as they were when its tokens were sampled. Raises by datum."""
    if not service.settings.stable_reinforce:
        raise Unsupported(
            "loss_fn: stable_reinforce is refused here; use importance_sampling or ppo."
        )
    wanted = {
        span.sequence_id
        for index, datum in enumerate(message.data)
        for span in _spans(datum, f"data[{index}]")
    }
    for sequence_id in wanted:
        if session_of(sequence_id) != session_of(run.id):
            raise BadRequest(
                f"data: sequence {sequence_id[:120]!r} is not of this run's session, which alone keeps it."
            )
    records = await service.bus.recorded(sorted(wanted))
    for index, datum in enumerate(message.data):
        _fill(datum, records, f"data[{index}]")
    return message.SerializeToString()


def _spans(datum: pb.Datum, where: str) -> list[Span]:
    if not datum.model_input_spans or not datum.loss_fn_input_spans:
        raise BadRequest(
            f"{where}: stable_reinforce needs provenance spans; attach them with with_provenance."
        )
    return [
        *spans(datum.model_input_spans, f"{where}.model_input_spans"),
        *spans(datum.loss_fn_input_spans, f"{where}.loss_fn_input_spans"),
    ]


def _fill(datum: pb.Datum, records: Records, where: str) -> None:
    inputs = f"{where}.loss_fn_inputs"
    for name in ("target_tokens", "advantages"):
        if name not in datum.loss_fn_inputs:
            raise BadRequest(f"{inputs}: stable_reinforce needs {name}.")
    targets = tensors.decode_tensor(
        datum.loss_fn_inputs["target_tokens"], f"{inputs}.target_tokens"
    )
    advantages = tensors.decode_tensor(datum.loss_fn_inputs["advantages"], f"{inputs}.advantages")
    num_tokens = sum(len(chunk.encoded_text.tokens) // 4 for chunk in datum.model_input)
    if targets.ndim != 1 or advantages.shape != targets.shape:
        raise BadRequest(f"{inputs}: target_tokens and advantages must both have the shape [N].")
    check_spans(datum, num_tokens, targets.size, where)
    logprobs, sampled = np.zeros(targets.size, "<f4"), np.zeros(targets.size, "<f4")
    for span in spans(datum.loss_fn_input_spans, f"{where}.loss_fn_input_spans"):
        record = _record(span, records, f"{where}.loss_fn_input_spans")
        if span.sampled:
            here = slice(span.start, span.start + span.length)
            there = slice(span.offset, span.offset + span.length)
            if not np.array_equal(targets[here], record.token_ids[there]):
                raise BadRequest(
                    f"{inputs}.target_tokens: positions {span.start} to {span.start + span.length} are not "
                    f"what sequence {span.sequence_id!r} sampled from {span.offset} on."
                )
            logprobs[here], sampled[here] = record.scores[there], 1.0
    for span in spans(datum.model_input_spans, f"{where}.model_input_spans"):
        _record(span, records, f"{where}.model_input_spans")
    if np.any((advantages != 0) & (sampled == 0)):
        raise BadRequest(
            f"{inputs}.advantages: only tokens of sampled_tokens spans may have one that is not 0."
        )
    datum.loss_fn_inputs["logprobs"].CopyFrom(tensors.encode_tensor(logprobs))
    datum.loss_fn_inputs["sampled"].CopyFrom(tensors.encode_tensor(sampled))


def _record(span: Span, records: Records, where: str) -> Recorded:
    record = records.get(span.sequence_id)
    if record is None:
        raise BadRequest(
            f"{where}: nothing is recorded of sequence {span.sequence_id[:120]!r}. Sample it with "
            "record_stability_info; records are kept for a day after their last use."
        )
    length = record.token_ids.size if span.sampled else record.prompt_length
    if span.offset + span.length > length:
        what = "sampled tokens" if span.sampled else "prompt tokens"
        raise BadRequest(
            f"{where}: sequence {span.sequence_id!r} has {length} {what}, and the span ends at "
            f"{span.offset + span.length}."
        )
    return record
