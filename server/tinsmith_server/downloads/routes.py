"""Links to a checkpoint's files, and what stands behind them."""

from collections.abc import AsyncIterator
from datetime import datetime

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from tinsmith.protocol.download_bodies import FileUrls
from tinsmith.protocol.errors import BadRequest
from tinsmith.protocol.paths import CheckpointKind, TinkerPath
from tinsmith.protocol.store_layout import checkpoint_prefix

from tinsmith_server.accounts import audit
from tinsmith_server.auth import Caller, User
from tinsmith_server.checkpoints import repository
from tinsmith_server.checkpoints.routes import CHECKPOINT, AtPath
from tinsmith_server.db import Checkpoint
from tinsmith_server.downloads.archive import archive
from tinsmith_server.service import Served, Service
from tinsmith_server.wire import answer

router = APIRouter()
_FILE = "/signed/checkpoints/{checkpoint_id}/files/{name}"
_ARCHIVE = "/signed/checkpoints/{checkpoint_id}/archive.tar"


@router.get(f"{CHECKPOINT}/external_weights_urls")
async def external_weights_urls(
    path: AtPath, request: Request, user: User, service: Served
) -> Response:
    """One link a file."""
    if path.kind is not CheckpointKind.EXTERNAL:
        raise BadRequest(
            f"path: {path} is not external weights; make them with save_weights_external."
        )
    return answer(await _links(path, request, user, service))


@router.get(f"{CHECKPOINT}/files")
async def file_urls(path: AtPath, request: Request, user: User, service: Served) -> Response:
    """The same for every kind: a PEFT adapter, and what training on takes beside it."""
    return answer(await _links(path, request, user, service))


async def _links(path: TinkerPath, request: Request, user: Caller, service: Service) -> FileUrls:
    row = await _readable(service, user, path)
    names = await service.storage.names(repository.prefix(row))
    links = {name: link(service, request, _file_path(row.id, name)) for name in names}
    urls = {name: url for name, (url, _) in links.items()}
    return FileUrls(urls=urls, expires=max(until for _, until in links.values()))


@router.get(f"{CHECKPOINT}/archive")
async def archive_link(path: AtPath, request: Request, user: User, service: Served) -> Response:
    """SDKs before 0.36 read the link out of the redirect; whoever follows it gets the file."""
    row = await _readable(service, user, path)
    url, expires = link(service, request, archive_path(row))
    headers = {"Location": url, "Expires": f"{expires:%a, %d %b %Y %H:%M:%S} GMT"}
    return answer({"url": url, "expires": expires}, 302, headers)


async def _readable(service: Service, user: Caller, path: TinkerPath) -> Checkpoint:
    async with service.db.begin() as sql:
        row, _ = await repository.ready_at(sql, user, path)
        audit.record_checkpoint(sql, user, "checkpoint_read", path, purpose="download")
    return row


def link(service: Service, request: Request, path: str) -> tuple[str, datetime]:
    """Whole: a client may fetch it with any program. Behind a proxy the setting knows the address."""
    base = service.settings.public_url or str(request.base_url)
    signed, expires = service.signer.sign(path)
    return f"{base.rstrip('/')}/api/v1{signed}", expires


def archive_path(checkpoint: Checkpoint) -> str:
    """To be signed."""
    return _ARCHIVE.format(checkpoint_id=checkpoint.id)


def _file_path(checkpoint_id: str, name: str) -> str:
    return _FILE.format(checkpoint_id=checkpoint_id, name=name)


@router.get(_FILE)
async def signed_file(
    checkpoint_id: str, name: str, expires: int, signature: str, service: Served
) -> Response:
    service.signer.check(_file_path(checkpoint_id, name), expires, signature)
    return attachment(*await service.storage.stream(checkpoint_prefix(checkpoint_id), name))


@router.get(_ARCHIVE)
async def signed_archive(
    checkpoint_id: str, expires: int, signature: str, service: Served
) -> Response:
    service.signer.check(_ARCHIVE.format(checkpoint_id=checkpoint_id), expires, signature)
    return attachment(*await archive(service.storage, checkpoint_prefix(checkpoint_id)))


def attachment(size: int, content: AsyncIterator[bytes]) -> Response:
    """With its length, which clients show progress by."""
    headers = {"Content-Length": str(size)}
    return StreamingResponse(content, headers=headers, media_type="application/octet-stream")
