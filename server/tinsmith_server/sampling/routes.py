"""Samplers, and samples on their way to the queue.

A refused sample is a failed future like a refused op: the SDK has its sequence ids already.
"""

import secrets

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol import wire_pb2 as pb
from tinsmith.protocol.bodies import (
    Body,
    CreateSamplingSession,
    FutureRef,
    Sample,
    Sampler,
    SamplingSessionCreated,
    Submitted,
)
from tinsmith.protocol.errors import BadRequest, TinsmithError, Unsupported
from tinsmith.protocol.jobs import Job, Kind, SampleJob, encode, failure
from tinsmith.protocol.json_tensors import fill_tensor
from tinsmith.protocol.paths import CheckpointKind, TinkerPath, sampling_session_id, sequence_id
from tinsmith.protocol.store_layout import checkpoint_prefix

from tinsmith_server.auth import Caller, User
from tinsmith_server.checkpoints import repository as checkpoints
from tinsmith_server.db import SamplingSession
from tinsmith_server.futures.routes import in_reach
from tinsmith_server.models.routes import model_card
from tinsmith_server.sampling.repository import owned_by
from tinsmith_server.service import Served, Service
from tinsmith_server.sessions.repository import open_session, still_open
from tinsmith_server.wire import answer, decode, read, read_body

router = APIRouter()
_CLONE_STRIDE = 1_000_000_000
_MAX_SAMPLES = 1024
_UNSAID_TOKENS = 1024


class SampleAddress(Body, kw_only=True, frozen=True):
    """Enough of a sampling request to fail it as a future."""

    sampling_session_id: str
    seq_id: int
    num_samples: int = 1


@router.post("/create_sampling_session")
async def create_sampling_session(request: Request, user: User, service: Served) -> Response:
    body = await read(request, CreateSamplingSession)
    made = sampling_session_id(body.session_id, body.sampling_session_seq_id)
    async with service.db.begin() as sql:
        session = await open_session(sql, user, body.session_id)
        if await sql.get(SamplingSession, made) is not None:
            return answer(SamplingSessionCreated(sampling_session_id=made))
        await service.allowances.check_month(user, session.project_id)
        row = SamplingSession(
            id=made, session_id=body.session_id, organization_id=user.organization_id
        )
        if body.model_path is not None:
            await _stand_on_checkpoint(sql, user, row, body.model_path)
        elif body.base_model is not None:
            row.base_model = (await model_card(service.bus, body.base_model)).name
        else:
            raise BadRequest("model_path: give it, or base_model.")
        if body.model_path and body.base_model not in (None, row.base_model):
            raise BadRequest(f"base_model: {body.model_path} is of {row.base_model}.")
        sql.add(row)
    return answer(SamplingSessionCreated(sampling_session_id=made))


async def _stand_on_checkpoint(
    sql: AsyncSession, user: Caller, row: SamplingSession, model_path: str
) -> None:
    path = TinkerPath.parse(model_path, "model_path")
    if path.kind is CheckpointKind.EXTERNAL:
        raise BadRequest("model_path: external weights cannot be sampled from.")
    checkpoint, run = await checkpoints.ready_at(sql, user, path)
    row.base_model, row.checkpoint_id, row.model_path = run.base_model, checkpoint.id, str(path)


@router.get("/samplers/{sampler_id}")
async def sampler(sampler_id: str, user: User, service: Served) -> Response:
    async with service.db.begin() as sql:
        row = await owned_by(sql, user, sampler_id)
    return answer(Sampler(sampler_id=row.id, base_model=row.base_model, model_path=row.model_path))


@router.post("/asample")
async def asample(request: Request, user: User, service: Served) -> Response:
    raw = await read_body(request)
    address = decode(raw, SampleAddress)
    row = await service.owners.sampler(user, address.sampling_session_id)
    session = still_open(await service.owners.session(user, row.session_id))
    if not 1 <= address.num_samples <= _MAX_SAMPLES:
        raise BadRequest(f"num_samples: {address.num_samples} is not from 1 to {_MAX_SAMPLES}.")
    request_id = f"{row.id}:{address.seq_id}"
    clone_id = address.seq_id // _CLONE_STRIDE
    body, num_tokens, refused = b"", 0, None
    try:
        await service.allowances.check_month(user, session.project_id)
        sample = _sample_job(decode(raw, Sample), row, await _weights(service, row))
        body, num_tokens = encode(sample), most_tokens(sample)
    except TinsmithError as error:
        refused = failure(error.message)
    job = Job(
        request_id=request_id,
        run_id=row.id,
        seq_id=address.seq_id,
        kind=Kind.SAMPLE,
        body=body,
        num_tokens=num_tokens,
    )
    bounds = await service.bounds(user, session.project_id, row.id)
    await service.bus.submit_sample(
        user.organization_id,
        row.base_model,
        job,
        clone_id,
        bounds,
        width=address.num_samples,
        refused=refused,
    )
    ids = [sequence_id(request_id, index) for index in range(address.num_samples)]
    return answer(Submitted(request_id=request_id, sample_sequence_ids=ids))


def most_tokens(sample: SampleJob) -> int:
    """Read and drawn, at most; without max_tokens, what a turn is reckoned with."""
    drawn = _UNSAID_TOKENS if sample.params.max_tokens is None else sample.params.max_tokens
    return len(sample.prompt) + sample.num_samples * max(0, drawn)


async def _weights(service: Service, row: SamplingSession) -> str | None:
    """The folder to sample from: of an inflight sampler, the newest of its run."""
    if row.slot_run_id and (newest := await service.bus.newest_weights(row.slot_run_id)):
        return newest
    return checkpoint_prefix(row.checkpoint_id) if row.checkpoint_id else None


def _sample_job(body: Sample, row: SamplingSession, prefix: str | None) -> SampleJob:
    """Everything a worker needs; the seed is fixed here, so that a repeat gives the same tokens."""
    seed = body.sampling_params.seed
    return SampleJob(
        base_model=row.base_model,
        adapter_prefix=prefix,
        prompt=_tokens(body),
        num_samples=body.num_samples,
        params=body.sampling_params,
        seed=secrets.randbits(63) if seed is None else seed % (1 << 63),
        prompt_logprobs=bool(body.prompt_logprobs),
        topk_prompt_logprobs=body.topk_prompt_logprobs,
        topk_sample_logprobs=body.topk_sample_logprobs,
        prompt_logprobs_last_n=body.prompt_logprobs_last_n,
        target_prompt_logprobs=_targets(body),
        prompt_alt_tokens_k=body.prompt_alt_tokens_k,
        record=bool(body.record_stability_info),
    )


def _targets(body: Sample) -> bytes | None:
    """The ids that are to be scored beside the prompt's own, as the worker reads them."""
    if body.target_prompt_logprobs is None:
        return None
    message = pb.Tensor()
    fill_tensor(message, body.target_prompt_logprobs, "target_prompt_logprobs")
    return message.SerializeToString()


def _tokens(body: Sample) -> list[int]:
    tokens: list[int] = []
    for index, chunk in enumerate(body.prompt.chunks):
        if chunk.tokens is None:
            raise Unsupported(
                f"prompt.chunks[{index}]: chunks of type {chunk.type!r} are not supported by text "
                "models; send encoded_text chunks."
            )
        tokens += chunk.tokens
    return tokens


@router.post("/cancel_future")
async def cancel_future(request: Request, user: User, service: Served) -> Response:
    """A sample, or an op of a run with all that was queued behind it. What is done stays done."""
    body = await read(request, FutureRef)
    future = await service.bus.future(body.request_id)
    if future is not None and await in_reach(service, user, body.request_id, future):
        await service.bus.cancel(body.request_id)
    return answer({})
