"""What a client may call a model: a base model, a checkpoint, or something shorter for either.

Says the same as create_sampling_session of whose a checkpoint is, and 404 where that says 404.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tinsmith.protocol.errors import BadRequest, NotFound
from tinsmith.protocol.jobs import ModelCard
from tinsmith.protocol.paths import SCHEME, CheckpointKind, TinkerPath

from tinsmith_server.auth import Caller
from tinsmith_server.checkpoints import repository as checkpoints
from tinsmith_server.service import Service

_LISTED_CHECKPOINTS = 100


@dataclass(frozen=True)
class Model:
    """What a name stands for: a base model, and the folder of the adapter on it if any."""

    name: str
    card: ModelCard
    adapter_prefix: str | None = None


@dataclass(frozen=True)
class Listed:
    id: str
    created: int
    owned_by: str


async def resolve(service: Service, user: Caller, name: str) -> Model:
    """Raises BadRequest or NotFound, with `model` as the field."""
    cards = {card.name: card for card in await service.bus.models()}
    if not name and len(cards) == 1:
        [card] = cards.values()
        return Model(card.name, card)
    full = service.settings.model_aliases.get(name, name)
    base, separator, path = full.rpartition(";")
    if separator:
        found = await _checkpoint(service, user, name, path, cards)
        if found.card.name != base:
            raise BadRequest(f"model: {path[:120]} is of {found.card.name}, not of {base[:120]}.")
        return found
    if full in cards:
        return Model(name, cards[full])
    if full.startswith(SCHEME) or "/sampler_weights/" in full or "/weights/" in full:
        return await _checkpoint(service, user, name, full, cards)
    short = [card for card in cards.values() if card.name.rpartition("/")[2] == full]
    if len(short) == 1:
        return Model(name, short[0])
    served = ", ".join(sorted(cards)) or "none yet: is a worker running?"
    raise NotFound(
        f"model: there is no {name[:120]!r} here. Give a tinker:// path, or one of these: {served}."
    )


async def _checkpoint(
    service: Service, user: Caller, name: str, path: str, cards: Mapping[str, ModelCard]
) -> Model:
    parsed = TinkerPath.parse(SCHEME + path.removeprefix(SCHEME), "model")
    if parsed.kind is CheckpointKind.EXTERNAL:
        raise BadRequest("model: external weights cannot be sampled from.")
    async with service.db.begin() as sql:
        try:
            checkpoint, run = await checkpoints.ready_at(sql, user, parsed)
        except NotFound:
            raise NotFound(f"model: there is no checkpoint {parsed}.") from None
    if run.base_model not in cards:
        raise BadRequest(f"model: its base model {run.base_model} is not served here any more.")
    return Model(name, cards[run.base_model], checkpoints.prefix(checkpoint))


async def listed(service: Service, user: Caller) -> list[Listed]:
    """Base models, aliases, and the newest of the caller's checkpoints for sampling."""
    cards = sorted(card.name for card in await service.bus.models())
    names = [*cards, *sorted(service.settings.model_aliases)]
    async with service.db.begin() as sql:
        rows, _ = await checkpoints.page(sql, user, _LISTED_CHECKPOINTS, 0)
    return [Listed(name, 0, "tinsmith") for name in names] + [
        Listed(str(checkpoints.path_of(row)), int(row.created_at.timestamp()), "you")
        for row in rows
        if row.kind == CheckpointKind.SAMPLER
    ]
