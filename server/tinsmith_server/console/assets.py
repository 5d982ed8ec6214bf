"""The files that pages stand on, under names that change with their content, so a browser keeps them."""

import hashlib
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response
from starlette.requests import Request
from tinsmith.protocol.errors import NotFound

from tinsmith_server.console.security import console_router

router: APIRouter = console_router()
_FOLDER = Path(__file__).parent / "static"
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


@cache
def asset(name: str) -> str:
    """Its address, with the beginning of its hash."""
    digest = hashlib.sha256((_FOLDER / name).read_bytes()).hexdigest()[:12]
    return f"/static/{digest}/{name}"


@router.get("/static/{digest}/{name}")
async def static_file(request: Request, digest: str, name: str) -> Response:
    """Only what is there, under its present hash: a page of an older version asks for older files."""
    path = _FOLDER / name
    known = {one.name for one in _FOLDER.iterdir() if one.suffix in _TYPES}
    if name not in known or asset(name) != request.url.path:
        raise NotFound("There is no such file.")
    headers = {"Cache-Control": "public, max-age=31536000, immutable"}
    return FileResponse(path, media_type=_TYPES[path.suffix], headers=headers)
