"""The API process: routes under /api/v1, one error handler, and what starts and stops with them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import Request

from tinsmith_server import client_config, extensions, metrics, openapi
from tinsmith_server.accounts import audit_routes
from tinsmith_server.accounts import routes as accounts
from tinsmith_server.background import routes as background
from tinsmith_server.checkpoints import copying, imports, saving
from tinsmith_server.checkpoints import routes as checkpoints
from tinsmith_server.console.rooms import ROOMS as CONSOLE
from tinsmith_server.console.security import no_such_page
from tinsmith_server.direct import EXPECTED, Direct, Endpoint
from tinsmith_server.downloads import exports
from tinsmith_server.downloads import routes as downloads
from tinsmith_server.futures import routes as futures
from tinsmith_server.logs import configure_logs
from tinsmith_server.losses import routes as losses
from tinsmith_server.migrate import migrate
from tinsmith_server.models import routes as models
from tinsmith_server.openai import routes as openai
from tinsmith_server.openai import tokenizer_routes as openai_tokenizers
from tinsmith_server.runs import listing
from tinsmith_server.runs import routes as runs
from tinsmith_server.sampling import joining
from tinsmith_server.sampling import routes as sampling
from tinsmith_server.service import Service
from tinsmith_server.sessions import rest as sessions_rest
from tinsmith_server.sessions import routes as sessions
from tinsmith_server.settings import Settings
from tinsmith_server.traces import routes as traces
from tinsmith_server.usage import routes as usage
from tinsmith_server.wire import answer, render_error

_ROOMS = (
    client_config,
    accounts,
    audit_routes,
    usage,
    sessions,
    sessions_rest,
    models,
    runs,
    listing,
    losses,
    sampling,
    joining,
    saving,
    copying,
    imports,
    downloads,
    exports,
    background,
    traces,
    extensions,
    checkpoints,
    futures,
)
_PREFIX = "/api/v1"
DIRECT: dict[str, Endpoint] = {
    f"{_PREFIX}/retrieve_future": futures.retrieve_future,
    f"{_PREFIX}/retrieve_futures": futures.retrieve_futures,
    f"{_PREFIX}/asample": sampling.asample,
    f"{_PREFIX}/forward": runs.forward_backward,
    f"{_PREFIX}/forward_backward": runs.forward_backward,
    f"{_PREFIX}/optim_step": runs.optim_step,
    f"{_PREFIX}/session_heartbeat": sessions.session_heartbeat,
}


def create_app(settings: Settings | None = None) -> FastAPI:
    settings = settings or Settings.from_environment()
    configure_logs()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        migrate(settings)
        app.state.service = Service.create(settings)
        await app.state.service.start()
        try:
            yield
        finally:
            await app.state.service.close()

    app = FastAPI(title="Tinsmith", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.openapi = partial(openapi.document, app)  # type: ignore[method-assign]
    app.add_exception_handler(Exception, render_error)
    app.add_exception_handler(HTTPException, _render_http)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _render_parameters)  # type: ignore[arg-type]
    for expected in EXPECTED:
        app.add_exception_handler(expected, render_error)
    api = APIRouter(prefix=_PREFIX)
    for room in _ROOMS:
        api.include_router(room.router)
    app.include_router(api)
    for prefix in openai.PREFIXES:
        app.include_router(openai.endpoint, prefix=prefix)
        app.include_router(openai_tokenizers.endpoint, prefix=prefix)
    app.include_router(client_config.health)
    for pages in CONSOLE:
        app.include_router(pages.router)
    app.include_router(metrics.router)
    app.state.metrics = metrics.Metrics()
    app.add_middleware(Direct, endpoints=DIRECT)
    app.add_middleware(metrics.Observed, metrics=app.state.metrics)
    return app


async def _render_http(request: Request, error: HTTPException) -> Response:
    """The framework's own: no such route, or not with this method. 404 either way is final."""
    status = 404 if error.status_code == 405 else error.status_code
    if status == 404 and "text/html" in request.headers.get("accept", ""):
        return no_such_page(request)
    return answer({"detail": f"There is no {request.method} {request.url.path} here."}, status)


async def _render_parameters(request: Request, error: RequestValidationError) -> Response:
    """A parameter of the path or query that does not parse, in one sentence like every refusal."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:])
    return answer({"detail": f"{name}: {first['msg']}."}, 422)
