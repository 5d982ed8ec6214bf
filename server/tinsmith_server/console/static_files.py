"""Static files, for anybody: the page to sign in stands on them too."""

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response
from starlette.requests import Request
from tinsmith.protocol.errors import NotFound

from tinsmith_server.console.assets import FOLDER, TYPES, asset, known
from tinsmith_server.console.security import console_router

router: APIRouter = console_router()


@router.get("/static/{digest}/{name}")
async def static_file(request: Request, digest: str, name: str) -> Response:
    """Only what is there, under its present hash: a page of an older version asks for older files."""
    if name not in known() or asset(name) != request.url.path:
        raise NotFound("There is no such file.")
    path = FOLDER / name
    headers = {"Cache-Control": "public, max-age=31536000, immutable"}
    return FileResponse(path, media_type=TYPES[path.suffix], headers=headers)
