"""Base models: which there are, and their tokenizers' files."""

import re

from fastapi import APIRouter
from fastapi.responses import Response
from tinsmith.protocol.bodies import Capabilities, SupportedModel
from tinsmith.protocol.errors import BadRequest, NotFound
from tinsmith.protocol.jobs import ModelCard
from tinsmith.protocol.store_layout import tokenizer_prefix

from tinsmith_server.auth import User
from tinsmith_server.bus import Bus
from tinsmith_server.service import Served
from tinsmith_server.wire import answer

router = APIRouter()


async def model_card(bus: Bus, base_model: str) -> ModelCard:
    """Of a model that some worker has announced; else the names there are."""
    cards = {card.name: card for card in await bus.models()}
    if base_model not in cards:
        names = ", ".join(sorted(cards)) or "none yet: is a worker running?"
        raise BadRequest(f"base_model: {base_model[:120]!r} is not served here. Served: {names}.")
    return cards[base_model]


@router.get("/get_server_capabilities")
async def get_server_capabilities(user: User, service: Served) -> Response:
    models = [
        SupportedModel(
            model_name=card.name,
            max_context_length=card.max_context_length,
            trainable=True,
            sampleable=True,
            engine=card.engine,
            dtype=card.dtype,
            exact=card.exact,
        )
        for card in await service.bus.models()
    ]
    return answer(Capabilities(supported_models=models))


@router.get("/tokenizers")
async def tokenizer(base_model: str, user: User, service: Served) -> Response:
    """Where the files of a model's tokenizer are, relative to the server's address."""
    card = await model_card(service.bus, base_model)
    if card.tokenizer_prefix is None:
        raise NotFound(f"base_model: {base_model!r} came without a tokenizer.")
    digest = card.tokenizer_prefix.rsplit("/", 1)[-1]
    names = await service.storage.names(card.tokenizer_prefix)
    return answer({"files": {name: f"/api/v1/tokenizers/{digest}/{name}" for name in names}})


@router.get("/tokenizers/{digest}/{name}")
async def tokenizer_file(digest: str, name: str, user: User, service: Served) -> Response:
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise NotFound("There is no such tokenizer.")
    data = await service.storage.file(tokenizer_prefix(digest), name)
    return Response(data, media_type="application/octet-stream")
