"""A checkpoint merged into its base model: made in the background, fetched over signed links for a day."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from tinsmith.protocol.download_bodies import Export, FileUrls
from tinsmith.protocol.errors import BadRequest, NotFound, Unsupported
from tinsmith.protocol.paths import CheckpointKind, TinkerPath
from tinsmith.protocol.store_layout import export_prefix

from tinsmith_server.accounts import audit
from tinsmith_server.auth import User
from tinsmith_server.background.tools import run_tool
from tinsmith_server.checkpoints import repository
from tinsmith_server.downloads.routes import attachment, link
from tinsmith_server.service import Served
from tinsmith_server.wire import answer, read

router = APIRouter()
MERGE = "merge"
_GGUF = (
    "format: 'gguf' is not made here: the gguf library writes the file, but knows no model's own "
    "conversion. Merge, and run llama.cpp's convert_hf_to_gguf.py on the folder."
)
_FILE = "/signed/jobs/{job_id}/files/{name}"


@router.post("/exports")
async def export(request: Request, user: User, service: Served) -> Response:
    """Begins to merge a checkpoint of one's own, or a published one; answers the job."""
    body = await read(request, Export)
    if body.format == "gguf":
        raise Unsupported(_GGUF)
    if body.format != "merged":
        raise BadRequest(f"format: {body.format[:40]!r} is not 'merged'.")
    path = TinkerPath.parse(body.tinker_path, "tinker_path")
    if path.kind is CheckpointKind.EXTERNAL:
        raise BadRequest("tinker_path: merge the training or sampler checkpoint instead.")
    async with service.db.begin() as sql:
        row, run = await repository.ready_at(sql, user, path)
        audit.record_checkpoint(sql, user, "checkpoint_read", path, purpose=MERGE)
    job = await service.jobs.enqueue(
        f"{__name__}.merge",
        user,
        MERGE,
        base_model=run.base_model,
        prefix=repository.prefix(row),
        untie_unembedding=body.untie_unembedding,
    )
    return answer(job)


def merge(*, job_id: str, base_model: str, prefix: str, untie_unembedding: bool) -> dict[str, Any]:
    """The job."""
    return run_tool(
        {
            "do": MERGE,
            "base_model": base_model,
            "prefix": prefix,
            "target": export_prefix(job_id),
            "untie_unembedding": untie_unembedding,
        }
    )


@router.get("/jobs/{job_id}/files")
async def job_files(job_id: str, request: Request, user: User, service: Served) -> Response:
    """One link a file of what the job made."""
    job = await service.jobs.look(user, job_id)
    if job.kind != MERGE or job.state != "done":
        raise NotFound(f"job_id: {job_id[:80]!r} has no files, or none yet.")
    names = await service.storage.names(export_prefix(job_id))
    links = {n: link(service, request, _FILE.format(job_id=job_id, name=n)) for n in names}
    urls = {name: url for name, (url, _) in links.items()}
    return answer(FileUrls(urls=urls, expires=min(until for _, until in links.values())))


@router.get(_FILE)
async def signed_job_file(
    job_id: str, name: str, expires: int, signature: str, service: Served
) -> Response:
    service.signer.check(_FILE.format(job_id=job_id, name=name), expires, signature)
    return attachment(*await service.storage.stream(export_prefix(job_id), name))
