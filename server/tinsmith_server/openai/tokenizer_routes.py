"""A model's tokenizer for clients that have none, as lm-eval asks for it."""

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response
from tinsmith.protocol.errors import BadRequest

from tinsmith_server.auth import User
from tinsmith_server.openai.errors import OpenAIRoute
from tinsmith_server.openai.naming import resolve
from tinsmith_server.openai.routes import PathModel
from tinsmith_server.openai.vocabulary import Vocabulary
from tinsmith_server.service import Served
from tinsmith_server.wire import answer, read

endpoint = APIRouter(route_class=OpenAIRoute)


class Tokenize(msgspec.Struct, kw_only=True, frozen=True):
    prompt: str
    model: str | None = None
    add_special_tokens: bool = True


class Detokenize(msgspec.Struct, kw_only=True, frozen=True):
    tokens: list[int]
    model: str | None = None


async def _vocabulary(service: Served, user: User, name: str) -> Vocabulary:
    found = await resolve(service, user, name)
    return await service.vocabularies.of(found.card)


@endpoint.get("/tokenizer_info")
async def tokenizer_info(
    user: User, service: Served, path_model: PathModel, model: str = ""
) -> Response:
    vocabulary = await _vocabulary(service, user, path_model or model)
    names = ("eos_token", "bos_token", "pad_token")
    tokens = {name: vocabulary.special_tokens.get(name) for name in names}
    return answer(tokens | {"chat_template": vocabulary.chat_template})


@endpoint.post("/tokenize")
async def tokenize(
    request: Request, user: User, service: Served, path_model: PathModel
) -> Response:
    body = await read(request, Tokenize)
    vocabulary = await _vocabulary(service, user, path_model or body.model or "")
    tokens = await vocabulary.encode(body.prompt, add_special_tokens=body.add_special_tokens)
    return answer({"tokens": tokens, "count": len(tokens)})


@endpoint.post("/detokenize")
async def detokenize(
    request: Request, user: User, service: Served, path_model: PathModel
) -> Response:
    body = await read(request, Detokenize)
    vocabulary = await _vocabulary(service, user, path_model or body.model or "")
    if not all(0 <= token < 1 << 32 for token in body.tokens):
        raise BadRequest("tokens: an id is a number from 0.")
    return answer({"prompt": vocabulary.decode(body.tokens)})
