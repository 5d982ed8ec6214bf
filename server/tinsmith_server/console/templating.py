"""Templates to pages. Everything is escaped; what every page needs is put in here."""

from pathlib import Path
from typing import Any

from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request

templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page(request: Request, name: str, /, status: int = 200, **context: Any) -> Response:
    """`member` is None and `csrf_token` empty where nobody is signed in."""
    text = templates.get_template(name).render(
        request=request,
        path=request.url.path,
        member=getattr(request.state, "member", None),
        csrf_token=getattr(request.state, "csrf_token", ""),
        **context,
    )
    return HTMLResponse(text, status)
