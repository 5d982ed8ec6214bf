"""Templates to pages. Everything is escaped; what every page needs is put in here."""

from pathlib import Path
from typing import Any

from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request

from tinsmith_server.console.assets import asset
from tinsmith_server.console.formats import FILTERS

templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
templates.filters.update(FILTERS)
templates.globals["asset"] = asset
_THEMES = ("light", "dark")


def page(request: Request, name: str, /, status: int = 200, **context: Any) -> Response:
    """`member` is None and `csrf_token` empty where nobody is signed in; `warnings` are for admins."""
    return HTMLResponse(piece(request, name, **context), status)


def piece(request: Request, name: str, /, **context: Any) -> str:
    """A template's text: a whole page, or what a live one puts into it."""
    theme = request.cookies.get("theme")
    return templates.get_template(name).render(
        request=request,
        path=request.url.path,
        query=request.url.query,
        base_url=_base_url(request),
        member=getattr(request.state, "member", None),
        csrf_token=getattr(request.state, "csrf_token", ""),
        warnings=getattr(request.state, "warnings", ()),
        theme=theme if theme in _THEMES else None,
        **context,
    )


def _base_url(request: Request) -> str:
    """Where the SDK finds the service."""
    public: str | None = request.app.state.service.settings.public_url
    return (public or str(request.base_url)).rstrip("/")
