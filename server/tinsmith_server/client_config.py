"""What a client asks before it does anything, and what it says that nobody needs to hear."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from tinsmith_server.auth import User
from tinsmith_server.service import Served
from tinsmith_server.wire import answer

router = APIRouter()
health = APIRouter()
_MAX_TELEMETRY_BYTES = 8 << 20


@router.post("/client/config")
async def client_config(user: User, service: Served) -> Response:
    """How the SDK cuts batches and waits for samples (wire: section 3)."""
    settings = service.settings
    return answer(
        {
            "pjwt_auth_enabled": True,
            "parallel_fwdbwd_chunks": True,
            "fwdbwd_max_chunk_len": settings.fwdbwd_max_chunk_len,
            "fwdbwd_max_chunk_bytes_count": settings.fwdbwd_max_chunk_bytes,
            "fwdbwd_dispatch_bytes_semaphore_size": 512 << 20,
            "sample_use_retrieve_futures": True,
            "sample_join_sampling_session": True,
            "custom_loss_server_side": True,
        }
    )


@router.post("/client/dynamic_config")
async def dynamic_config(user: User) -> Response:
    return answer({"sample_cancel_enabled": True})


@router.post("/telemetry")
async def telemetry(request: Request) -> Response:
    """Accepted and dropped, unread: its events can hold keys.

    It asks nobody who they are, so it needs no part that may be down: the SDK holds every error back for
    half a minute when this fails.
    """
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > _MAX_TELEMETRY_BYTES:
            break
    return answer({"status": "accepted"})


@router.get("/healthz")
@health.get("/healthz")
async def healthz() -> Response:
    return answer({"status": "ok"})
