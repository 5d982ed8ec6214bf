"""Calls of the SDK that this version answers with a sentence instead of an effect.

Never 404, 501 or silence: the first reads as a mistake of the caller, the second is retried for five
minutes. Each row is removed when its call is built.
"""

from fastapi import APIRouter, Request
from fastapi.responses import Response
from tinsmith.protocol.bodies import Addressed, Submitted
from tinsmith.protocol.errors import Unsupported
from tinsmith.protocol.jobs import Kind

from tinsmith_server.auth import User
from tinsmith_server.runs.ops import submit_op
from tinsmith_server.service import Served
from tinsmith_server.wire import answer, decode, read_body

router = APIRouter()

_CHECKPOINT = "/training_runs/{run_id}/checkpoints/{kind}/{name}"
NOT_OFFERED = {
    ("POST", "/join_sampling_session"): "joining a sampling session",
    ("POST", "/create_custom_loss"): "custom losses on the server (the SDK computes them itself)",
    ("POST", "/copy_weights"): "copying checkpoints between projects",
    ("GET", f"{_CHECKPOINT}/external_weights_urls"): "downloading weights over signed URLs",
    ("GET", f"{_CHECKPOINT}/archive"): "downloading weights as an archive",
    ("GET", "/sessions/{session_id}/trace_export"): "exporting traces",
}


def _refusal(what: str) -> str:
    return f"This version of Tinsmith does not offer {what}."


def _route(method: str, path: str, what: str) -> None:
    async def refuse(user: User) -> Response:
        raise Unsupported(_refusal(what))

    router.add_api_route(path, refuse, methods=[method])


for (_method, _path), _what in NOT_OFFERED.items():
    _route(_method, _path, _what)


@router.post("/save_weights_external")
async def save_weights_external(request: Request, user: User, service: Served) -> Response:
    """It carries a seq_id, so it fails in its turn and the run goes on."""
    op = decode(await read_body(request), Addressed)

    async def refuse(_: object) -> bytes:
        raise Unsupported(_refusal("saving weights for download (save_weights_external)"))

    request_id = await submit_op(service, user, op, Kind.SAVE_WEIGHTS, refuse)
    return answer(Submitted(request_id=request_id, model_id=op.model_id))
