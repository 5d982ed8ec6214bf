"""Calls of the SDK that this version answers with a sentence instead of an effect.

Never 404, 501 or silence: the first reads as a mistake of the caller, the second is retried for five
minutes. Each row is removed when its call is built.
"""

from fastapi import APIRouter
from fastapi.responses import Response
from tinsmith.protocol.errors import Unsupported

from tinsmith_server.auth import User

router = APIRouter()

NOT_OFFERED = {
    ("POST", "/create_custom_loss"): "custom losses on the server (the SDK computes them itself)",
}


def _route(method: str, path: str, what: str) -> None:
    async def refuse(user: User) -> Response:
        raise Unsupported(f"This version of Tinsmith does not offer {what}.")

    router.add_api_route(path, refuse, methods=[method])


for (_method, _path), _what in NOT_OFFERED.items():
    _route(_method, _path, _what)
