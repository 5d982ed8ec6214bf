"""Adapters from outside: one upload, checked and mapped in the background, then a run to train on from.

The names of the caller's files go nowhere: each part of the form has its own name in the store.
"""

import asyncio
import hashlib
import secrets
import uuid
from typing import Any, BinaryIO, cast

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from tinsmith.protocol.errors import BadRequest
from tinsmith.protocol.paths import CheckpointKind, checkpoint_name
from tinsmith.protocol.peft_config import PeftConfig
from tinsmith.protocol.store_layout import checkpoint_prefix, upload_prefix

from tinsmith_server.accounts import audit
from tinsmith_server.auth import Caller, User
from tinsmith_server.background.tools import run_tool
from tinsmith_server.checkpoints import placing
from tinsmith_server.checkpoints.repository import path_of
from tinsmith_server.db import Database, TrainingRun
from tinsmith_server.models.routes import model_card
from tinsmith_server.reach import check_project
from tinsmith_server.service import Served
from tinsmith_server.sessions.repository import DEFAULT_PROJECT, project_name
from tinsmith_server.settings import Settings
from tinsmith_server.storage import Storage
from tinsmith_server.wire import answer

router = APIRouter()
IMPORT = "import"
_CONFIG_BYTES, _SMALL_BYTES = 1 << 20, 64 << 10
_FILES = {
    "adapter_model": "adapter_model.safetensors",
    "optimizer": "optimizer.safetensors",
    "tinsmith": "tinsmith.json",
}
"""What each part of the form is called in the store."""


@router.post("/imports")
async def import_adapter(request: Request, user: User, service: Served) -> Response:
    """A form of base_model, adapter_config and adapter_model; answers the job that takes it in.

    Also name and project_id; and optimizer and tinsmith, as a training checkpoint of this service has
    them, to go on with the optimizer's moments.
    """
    _check_length(request, service.settings.max_upload_bytes)
    try:
        form = await request.form(max_files=4, max_fields=4, max_part_size=_SMALL_BYTES)
    except HTTPException as error:
        said = str(error.detail)[:80]
        raise BadRequest(f"body: it is not a form of at most eight parts ({said}).") from None
    try:
        return await _begin(form, user, service)
    finally:
        await form.close()


def _check_length(request: Request, limit: int) -> None:
    """Before a byte is read: what the server reads is never longer than what the header says."""
    length = request.headers.get("content-length", "")
    if not length.isdigit() or "multipart/form-data" not in request.headers.get("content-type", ""):
        raise BadRequest("body: send multipart/form-data with a Content-Length.")
    if int(length) > limit:
        raise BadRequest(f"body: {length} bytes is above the limit of {limit} for an upload.")


async def _begin(form: FormData, user: Caller, service: Served) -> Response:
    config = PeftConfig.parse(await _config(form))
    card = await model_card(service.bus, _text(form, "base_model"))
    if config.largest_rank > card.max_lora_rank:
        raise BadRequest(
            f"adapter_config.r: {config.largest_rank} is above {card.max_lora_rank}, the largest rank "
            f"for {card.name} here."
        )
    name = checkpoint_name(_text(form, "name", "imported"), "name")
    named = _text(form, "project_id", user.project_id or DEFAULT_PROJECT)
    project_id = check_project(user, project_name(named))
    await service.allowances.check_stored(user, project_id)
    job_id = uuid.uuid4().hex
    await service.storage.write_folder(upload_prefix(job_id), _uploads(form))
    job = await service.jobs.enqueue(
        f"{__name__}.take_in",
        user,
        IMPORT,
        job_id=job_id,
        base_model=card.name,
        config=msgspec.to_builtins(config),
        name=name,
        project_id=project_id,
        key_id=user.key_id,
        tenant=user.organization_id,
        seed=secrets.randbits(31),
    )
    return answer(job)


async def _config(form: FormData) -> bytes:
    part = form.get("adapter_config")
    if isinstance(part, str):
        return part.encode()
    if part is None or (part.size or 0) > _CONFIG_BYTES:
        raise BadRequest("adapter_config: give adapter_config.json, of at most a megabyte.")
    return await part.read()


def _text(form: FormData, name: str, default: str | None = None) -> str:
    given = form.get(name) or default
    if not isinstance(given, str):
        raise BadRequest(f"{name}: give it, as a field of the form.")
    return given


def _uploads(form: FormData) -> dict[str, BinaryIO]:
    found = {_FILES[part]: form[part] for part in _FILES if part in form}
    if _FILES["adapter_model"] not in found:
        raise BadRequest(
            "adapter_model: give adapter_model.safetensors; pickled .bin files are never read."
        )
    for name, part in found.items():
        if not isinstance(part, UploadFile):
            raise BadRequest(f"{name}: send it as a file of the form.")
    return {name: cast(UploadFile, part).file for name, part in found.items()}


def take_in(
    *,
    job_id: str,
    base_model: str,
    config: dict[str, Any],
    name: str,
    project_id: str,
    key_id: str,
    tenant: str,
    seed: int,
) -> dict[str, Any]:
    """The job. Begun anew after a death it finds its row, and does the rest."""
    settings = Settings.from_environment()
    storage = Storage(settings.store_url)
    target = hashlib.sha256(job_id.encode()).hexdigest()[:32]
    told = run_tool(
        {
            "do": "take_in",
            "base_model": base_model,
            "source": upload_prefix(job_id),
            "target": checkpoint_prefix(target),
            "config": config,
            "seed": seed,
        }
    )
    if "result" in told:
        user = Caller(key_id, tenant)
        placed = asyncio.run(
            _place(settings, user, project_id, job_id, target, name, base_model, told["result"])
        )
        told = {"result": told["result"] | placed}
    asyncio.run(storage.delete_folder(upload_prefix(job_id)))
    return told


async def _place(
    settings: Settings,
    user: Caller,
    project_id: str,
    job_id: str,
    checkpoint_id: str,
    name: str,
    base_model: str,
    made: dict[str, Any],
) -> dict[str, Any]:
    request_id = f"{IMPORT}:{job_id}"
    db = Database(settings.database_url)
    try:
        async with db.begin() as sql:
            row = await placing.known(sql, request_id)
            if row is None:
                trains = {f"train_{place}": on for place, on in made["trains"].items()}
                like = TrainingRun(
                    base_model=base_model,
                    lora_rank=made["rank"],
                    optimizer=made["optimizer"],
                    **trains,
                )
                run = await placing.new_run(sql, user, project_id, f"Import of {name}", like)
                row = placing.checkpoint_in(
                    sql, run, request_id, CheckpointKind.TRAINING.value, name
                )
                row.id, row.ready, row.size_bytes = checkpoint_id, True, made["size_bytes"]
                audit.record_checkpoint(sql, user, "checkpoint_imported", path_of(row))
            return {"run_id": row.run_id, "tinker_path": str(path_of(row))}
    finally:
        await db.close()
