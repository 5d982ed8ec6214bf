"""Training runs: create, load, compute, step, look up."""

import secrets

from fastapi import APIRouter, Request
from fastapi.responses import Response
from tinsmith.protocol import tensors
from tinsmith.protocol import wire_pb2 as pb
from tinsmith.protocol.bodies import (
    Addressed,
    CreateModel,
    LoadWeights,
    LoraConfig,
    ModelData,
    OptimStep,
    RunInfo,
    RunRef,
    Submitted,
)
from tinsmith.protocol.distillation import LOSS_VERSIONS
from tinsmith.protocol.errors import BadRequest, TinsmithError, Unsupported
from tinsmith.protocol.jobs import (
    AdapterSpec,
    CreateModelJob,
    Job,
    Kind,
    LoadJob,
    ModelCard,
    encode,
)
from tinsmith.protocol.paths import CheckpointKind, TinkerPath, run_id, training_request_id

from tinsmith_server.auth import Caller, User
from tinsmith_server.checkpoints import repository as checkpoints
from tinsmith_server.db import TrainingRun
from tinsmith_server.losses import routes as custom_losses
from tinsmith_server.losses.teachers import refuse_resolved, with_teachers
from tinsmith_server.models.routes import model_card
from tinsmith_server.runs import repository
from tinsmith_server.runs.json_forward import JsonForwardBackward, to_message
from tinsmith_server.runs.ops import submit_op
from tinsmith_server.runs.optimizers import chosen, config_of, step_of
from tinsmith_server.runs.stability import STABLE_REINFORCE, note_headers, with_recorded
from tinsmith_server.service import Served, Service
from tinsmith_server.sessions.repository import open_session
from tinsmith_server.sessions.routes import metadata
from tinsmith_server.wire import answer, decode, read, read_body

router = APIRouter()


@router.post("/create_model")
async def create_model(request: Request, user: User, service: Served) -> Response:
    """A new run with a fresh adapter. (session_id, model_seq_id) is its name and idempotency key."""
    body = await read(request, CreateModel)
    lora = body.lora_config
    if lora is None:
        raise Unsupported("lora_config: full fine-tuning is not supported; give a LoRA config.")
    card = await model_card(service.bus, body.base_model)
    _check_lora(lora, card)
    optimizer = chosen(body.optimizer_config)
    _check_model_seq(body.model_seq_id)
    run = TrainingRun(
        id=run_id(body.session_id, body.model_seq_id),
        session_id=body.session_id,
        organization_id=user.organization_id,
        optimizer=optimizer,
        base_model=card.name,
        lora_rank=lora.rank,
        train_attn=lora.train_attn,
        train_mlp=lora.train_mlp,
        train_unembed=lora.train_unembed,
        user_metadata=metadata(body.user_metadata),
    )
    seed = secrets.randbits(31) if lora.seed is None else lora.seed
    spec = AdapterSpec(
        base_model=card.name,
        rank=lora.rank,
        seed=seed % (1 << 63),
        train_attn=lora.train_attn,
        train_mlp=lora.train_mlp,
        train_unembed=lora.train_unembed,
    )
    job_body = encode(CreateModelJob(adapter=spec, optimizer=optimizer))
    return await _found_run(service, user, run, Kind.CREATE_MODEL, job_body)


async def _found_run(
    service: Service, user: Caller, run: TrainingRun, kind: Kind, body: bytes
) -> Response:
    """Record the run and queue its request 0; a repeat finds both there."""
    async with service.db.begin() as sql:
        session = await open_session(sql, user, run.session_id)
        if await sql.get(TrainingRun, run.id) is None:
            await service.allowances.check_month(user, session.project_id)
            sql.add(run)
    request_id = training_request_id(run.id, 0)
    job = Job(request_id=request_id, run_id=run.id, seq_id=0, kind=kind, body=body)
    bounds = await service.bounds(user, session.project_id, run.id)
    await service.bus.submit(user.organization_id, run.base_model, job, bounds)
    return answer(Submitted(request_id=request_id, model_id=run.id))


def _check_lora(lora: LoraConfig, card: ModelCard) -> None:
    if not 1 <= lora.rank <= card.max_lora_rank:
        raise BadRequest(
            f"lora_config.rank: {lora.rank} is not from 1 to {card.max_lora_rank}, "
            f"the largest rank for {card.name} here."
        )
    if not (lora.train_attn or lora.train_mlp or lora.train_unembed):
        raise BadRequest("lora_config: set one of train_attn, train_mlp and train_unembed.")


def _check_model_seq(model_seq_id: int) -> None:
    if not 0 <= model_seq_id < 1_000_000_000:
        raise BadRequest(f"model_seq_id: {model_seq_id} is not from 0 to 999999999.")


@router.post("/load_weights")
async def load_weights(request: Request, user: User, service: Served) -> Response:
    """Into a new run of a session, or into the run it names (wire: 8.4)."""
    body = decode(await read_body(request), LoadWeights)
    if body.model_id is not None and body.seq_id is not None:
        op = Addressed(model_id=body.model_id, seq_id=body.seq_id)

        async def make(run: TrainingRun) -> bytes:
            job, source = await _load_job(service, user, body, run.optimizer)
            if (source.base_model, source.lora_rank) != (run.base_model, run.lora_rank):
                raise BadRequest(
                    f"path: {body.path} is of {source.base_model} with rank {source.lora_rank}, "
                    f"this run of {run.base_model} with rank {run.lora_rank}."
                )
            return encode(job)

        request_id = await submit_op(service, user, op, Kind.LOAD_WEIGHTS, make)
        return answer(Submitted(request_id=request_id, model_id=op.model_id))
    if body.session_id is None or body.model_seq_id is None:
        raise BadRequest("load_weights: give session_id and model_seq_id, or model_id and seq_id.")
    wanted = chosen(body.optimizer_config) if body.optimizer_config else None
    job, source = await _load_job(service, user, body, wanted)
    _check_model_seq(body.model_seq_id)
    run = TrainingRun(
        id=run_id(body.session_id, body.model_seq_id),
        session_id=body.session_id,
        organization_id=user.organization_id,
        optimizer=job.optimizer_type,
        base_model=source.base_model,
        lora_rank=source.lora_rank,
        train_attn=source.train_attn,
        train_mlp=source.train_mlp,
        train_unembed=source.train_unembed,
        user_metadata=metadata(body.user_metadata),
    )
    return await _found_run(service, user, run, Kind.LOAD_WEIGHTS, encode(job))


async def _load_job(
    service: Service, user: Caller, body: LoadWeights, optimizer: str | None
) -> tuple[LoadJob, TrainingRun]:
    """The job, and the run that the checkpoint came from, whose type of optimizer is the default."""
    if body.weights_access_token is not None:
        raise Unsupported("weights_access_token: loading another account's weights is not offered.")
    path = TinkerPath.parse(body.path)
    if body.optimizer and path.kind is not CheckpointKind.TRAINING:
        raise BadRequest(f"optimizer: {body.path} has no optimizer state; load it without.")
    async with service.db.begin() as sql:
        checkpoint, source = await checkpoints.ready_at(sql, user, path)
    if body.base_model not in (None, source.base_model):
        raise BadRequest(f"base_model: {body.path} is of {source.base_model}.")
    if body.optimizer and optimizer not in (None, source.optimizer):
        raise BadRequest(
            f"optimizer: {body.path} has the state of {source.optimizer}, and this run uses "
            f"{optimizer}; load it without."
        )
    job = LoadJob(
        prefix=checkpoints.prefix(checkpoint),
        path=body.path,
        optimizer=body.optimizer,
        base_model=source.base_model,
        optimizer_type=optimizer or source.optimizer,
    )
    return job, source


@router.post("/get_info")
async def get_info(request: Request, user: User, service: Served) -> Response:
    body = await read(request, RunRef)
    async with service.db.begin() as sql:
        run = await repository.owned_by(sql, user, body.model_id)
    card = await model_card(service.bus, run.base_model)
    data = ModelData(arch=card.family, model_name=run.base_model, tokenizer_id=run.base_model)
    info = RunInfo(
        model_data=data,
        model_id=run.id,
        optimizer_config=config_of(run),
        is_lora=True,
        lora_rank=run.lora_rank,
        model_name=run.base_model,
    )
    return answer(info)


@router.post("/forward_backward")
@router.post("/forward")
async def forward_backward(request: Request, user: User, service: Served) -> Response:
    """Protobuf, or JSON by Content-Type. Its datums are checked by the worker, in their turn."""
    raw = await read_body(request)
    if "json" in request.headers.get("content-type", ""):
        return await _forward_backward_json(raw, user, service)
    message = tensors.parse_forward_backward(raw)
    op = Addressed(model_id=message.model_id, seq_id=message.seq_id)

    async def make(run: TrainingRun) -> bytes:
        return await _with_loss(service, user, run, message, raw)

    kind = Kind.FORWARD if message.forward_only else Kind.FORWARD_BACKWARD
    num_tokens = tensors.num_tokens(message)
    request_id = await submit_op(service, user, op, kind, make, num_tokens)
    headers = await note_headers(service, op.model_id, message.loss_fn)
    return answer(Submitted(request_id=request_id, model_id=op.model_id), headers=headers)


async def _with_loss(
    service: Service, user: Caller, run: TrainingRun, message: pb.ForwardBackwardRequest, raw: bytes
) -> bytes:
    """The request with whatever its loss needs from here."""
    refuse_resolved(message)
    if message.loss_fn == custom_losses.CUSTOM:
        return await custom_losses.with_graph(service, user, run, message, raw)
    if message.loss_fn in LOSS_VERSIONS:
        return await with_teachers(service, user, run, message, raw)
    if message.loss_fn == STABLE_REINFORCE:
        return await with_recorded(service, run, message)
    return raw


async def _forward_backward_json(raw: bytes, user: Caller, service: Service) -> Response:
    op = decode(raw, Addressed)
    message: pb.ForwardBackwardRequest | TinsmithError
    try:
        message = to_message(decode(raw, JsonForwardBackward))
    except TinsmithError as error:
        message = error

    async def make(run: TrainingRun) -> bytes:
        if isinstance(message, TinsmithError):
            raise message
        return await _with_loss(service, user, run, message, message.SerializeToString())

    # Whether it wants a gradient stands inside the message; the worker reads it there.
    num_tokens = 0 if isinstance(message, TinsmithError) else tensors.num_tokens(message)
    request_id = await submit_op(service, user, op, Kind.FORWARD_BACKWARD, make, num_tokens)
    loss_fn = "" if isinstance(message, TinsmithError) else message.loss_fn
    headers = await note_headers(service, op.model_id, loss_fn)
    return answer(Submitted(request_id=request_id, model_id=op.model_id), headers=headers)


@router.post("/optim_step")
async def optim_step(request: Request, user: User, service: Served) -> Response:
    """Apply the accumulated gradient."""
    raw = await read_body(request)
    op = decode(raw, Addressed)

    async def make(run: TrainingRun) -> bytes:
        return encode(step_of(decode(raw, OptimStep), run))

    request_id = await submit_op(service, user, op, Kind.OPTIM_STEP, make)
    return answer(Submitted(request_id=request_id, model_id=op.model_id))
