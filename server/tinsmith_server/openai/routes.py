"""The OpenAI-compatible endpoint, at each of its addresses."""

from typing import Annotated, TypeVar

import msgspec
from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import Response
from tinsmith.protocol.errors import NotFound

from tinsmith_server.auth import User
from tinsmith_server.openai.answers import ModelEntry, ModelList
from tinsmith_server.openai.bodies import ChatRequest, CompletionRequest
from tinsmith_server.openai.bodies import Request as Body
from tinsmith_server.openai.chat import Chatter
from tinsmith_server.openai.completions import Completer
from tinsmith_server.openai.errors import OpenAIRoute
from tinsmith_server.openai.naming import listed, resolve
from tinsmith_server.openai.streaming import answered, server_sent
from tinsmith_server.service import Served
from tinsmith_server.wire import answer, read

B = TypeVar("B", bound=Body)
PREFIXES = ("", "/oai/api", "/services/tinker-prod/oai/api", "/m/{path_model:path}")
"""The second and third are where the hosted service has it, below its SDK's address and below its host."""
endpoint = APIRouter(route_class=OpenAIRoute)


async def _model_of_path(request: Request) -> str | None:
    """`/m/{model}/...` names the model for clients that cannot."""
    return request.path_params.get("path_model")


PathModel = Annotated[str | None, Depends(_model_of_path)]


def _named(body: B, path_model: str | None) -> B:
    return body if path_model is None else msgspec.structs.replace(body, model=path_model)


@endpoint.get("/v1/models")
async def models(user: User, service: Served) -> Response:
    found = [ModelEntry(**vars(one)) for one in await listed(service, user)]
    return answer(ModelList(data=found))


@endpoint.get("/v1/models/{name:path}")
async def model(name: Annotated[str, Path()], user: User, service: Served) -> Response:
    found = await resolve(service, user, name)
    return answer(ModelEntry(id=found.name, created=0, owned_by="tinsmith"))


@endpoint.post("/v1/completions")
async def completions(
    request: Request, user: User, service: Served, path_model: PathModel
) -> Response:
    body = _named(await read(request, CompletionRequest), path_model)
    completer = await Completer.of(service, user, body)
    if body.stream:
        return await server_sent(request, completer.chunks())
    return await answered(request, completer.whole())


@endpoint.post("/v1/chat/completions")
async def chat_completions(
    request: Request, user: User, service: Served, path_model: PathModel
) -> Response:
    body = _named(await read(request, ChatRequest), path_model)
    chatter = await Chatter.of(service, user, body)
    if body.stream:
        return await server_sent(request, chatter.chunks())
    return await answered(request, chatter.whole())


@endpoint.api_route(
    "/v1/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False
)
async def nothing_else(rest: str, request: Request) -> Response:
    raise NotFound(
        f"There is no {request.method} /v1/{rest[:80]} here; there are models, completions and "
        "chat/completions."
    )
