"""Trying a model by hand: a prompt or a chat, a checkpoint with its base beside it, each token's odds."""

import asyncio
import hashlib
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Form
from fastapi.responses import Response
from sqlalchemy import select
from starlette.requests import Request
from tinsmith.protocol.errors import BadRequest, TinsmithError
from tinsmith.protocol.paths import SCHEME

from tinsmith_server.accounts.caller import Caller, SignedIn
from tinsmith_server.checkpoints import repository as checkpoints
from tinsmith_server.console.security import Member, console_router
from tinsmith_server.console.templating import page
from tinsmith_server.db import Checkpoint
from tinsmith_server.openai.bodies import ChatRequest, CompletionRequest
from tinsmith_server.openai.chat import Chatter
from tinsmith_server.openai.completions import Completer
from tinsmith_server.openai.generation import Failed
from tinsmith_server.openai.naming import resolve
from tinsmith_server.service import Served, Service

router: APIRouter = console_router()
_SHOWN_CHECKPOINTS = 50
_MOST_TOKENS = 1024
_TOP = 5
_CLASSES = ((0.9, ""), (0.5, "p1"), (0.2, "p2"), (0.05, "p3"), (0.0, "p4"))


@dataclass(frozen=True)
class ShownToken:
    text: str
    logprob: float
    top: Sequence[tuple[str, float]]

    @property
    def probability(self) -> float:
        return math.exp(self.logprob)

    @property
    def shade(self) -> str:
        """The less it was to be expected, the darker."""
        return next(name for least, name in _CLASSES if self.probability >= least)

    @property
    def title(self) -> str:
        others = ", ".join(f"{text!r} {math.exp(logprob):.1%}" for text, logprob in self.top)
        return (
            f"{self.text!r}: {self.probability:.1%}, log p {self.logprob:.3f}. Likeliest: {others}"
        )


@dataclass(frozen=True)
class ShownAnswer:
    model: str
    tokens: Sequence[ShownToken] = ()
    reason: str = ""
    error: str = ""

    @property
    def logprob(self) -> float:
        return sum(one.logprob for one in self.tokens)


@dataclass(frozen=True)
class Wanted:
    mode: str = "completion"
    model: str = ""
    prompt: str = ""
    system: str = ""
    max_tokens: int = 64
    temperature: float = 0.7
    seed: str = ""
    beside: bool = False

    def check(self) -> None:
        if self.mode not in ("completion", "chat"):
            raise BadRequest("mode: give completion or chat.")
        if not self.prompt:
            raise BadRequest("prompt: it is empty.")
        if not 1 <= self.max_tokens <= _MOST_TOKENS:
            raise BadRequest(f"max_tokens: give 1 to {_MOST_TOKENS}.")
        if self.seed and not self.seed.isdigit():
            raise BadRequest("seed: give a whole number, or nothing.")


@router.get("/playground")
async def playground_page(
    request: Request,
    member: Member,
    service: Served,
    mode: str = "completion",
    checkpoint: str = "",
) -> Response:
    """`mode=checkpoint&checkpoint=tinker://...` is how the SDK links here."""
    wanted = Wanted(
        mode=mode if mode == "chat" else "completion", model=checkpoint, beside=bool(checkpoint)
    )
    return await _shown(request, member, service, wanted, [])


@router.post("/playground")
async def ask(
    request: Request,
    member: Member,
    service: Served,
    mode: Annotated[str, Form()],
    model: Annotated[str, Form()],
    prompt: Annotated[str, Form()],
    max_tokens: Annotated[int, Form()],
    temperature: Annotated[float, Form()],
    system: Annotated[str, Form()] = "",
    seed: Annotated[str, Form()] = "",
    beside: Annotated[bool, Form()] = False,
) -> Response:
    wanted = Wanted(mode, model, prompt, system, max_tokens, temperature, seed, beside)
    answers = await _answers(service, member, wanted)
    if request.headers.get("hx-request"):
        return page(request, "fragments/answers.html", answers=answers)
    return await _shown(request, member, service, wanted, answers)


async def _shown(
    request: Request,
    member: SignedIn,
    service: Service,
    wanted: Wanted,
    answers: Sequence[ShownAnswer],
) -> Response:
    cards = sorted(card.name for card in await service.bus.models())
    query = (
        select(Checkpoint)
        .where(
            Checkpoint.organization_id == member.organization_id,
            checkpoints.listed(),
            Checkpoint.kind != "external_weights",
        )
        .order_by(Checkpoint.created_at.desc(), Checkpoint.id)
        .limit(_SHOWN_CHECKPOINTS)
    )
    async with service.db.begin() as sql:
        paths = [str(checkpoints.path_of(row)) for row in await sql.scalars(query)]
    if wanted.model and wanted.model not in (*cards, *paths):
        paths.insert(0, wanted.model)
    return page(
        request, "playground.html", wanted=wanted, cards=cards, paths=paths, answers=answers
    )


async def _answers(service: Service, member: SignedIn, wanted: Wanted) -> list[ShownAnswer]:
    """One, or the checkpoint's and its base model's on the same draws."""
    user = _caller(member)
    seed = int(wanted.seed) if wanted.seed else secrets.randbits(31)
    try:
        wanted.check()
        models = [wanted.model]
        if wanted.beside and wanted.model.startswith(SCHEME):
            models.append((await resolve(service, user, wanted.model)).card.name)
    except TinsmithError as error:
        return [ShownAnswer(wanted.model, error=error.message)]
    return list(
        await asyncio.gather(*(_answer(service, user, wanted, model, seed) for model in models))
    )


async def _answer(
    service: Service, user: Caller, wanted: Wanted, model: str, seed: int
) -> ShownAnswer:
    try:
        if wanted.mode == "chat":
            return await _chatted(service, user, wanted, model, seed)
        return await _completed(service, user, wanted, model, seed)
    except TinsmithError as error:
        return ShownAnswer(model, error=error.message)
    except Failed as error:
        return ShownAnswer(model, error=str(error))


async def _completed(
    service: Service, user: Caller, wanted: Wanted, model: str, seed: int
) -> ShownAnswer:
    body = CompletionRequest(
        model=model,
        prompt=wanted.prompt,
        max_tokens=wanted.max_tokens,
        temperature=wanted.temperature,
        seed=seed,
        logprobs=_TOP,
    )
    [choice] = (await (await Completer.of(service, user, body)).whole()).choices
    found = choice.logprobs
    assert found is not None, "they were asked for"
    tokens = [
        ShownToken(text, logprob or 0.0, list((top or {}).items()))
        for text, logprob, top in zip(
            found.tokens, found.token_logprobs, found.top_logprobs, strict=True
        )
    ]
    return ShownAnswer(model, tokens, choice.finish_reason or "")


async def _chatted(
    service: Service, user: Caller, wanted: Wanted, model: str, seed: int
) -> ShownAnswer:
    system = [{"role": "system", "content": wanted.system}] if wanted.system else []
    body = ChatRequest(
        model=model,
        messages=[*system, {"role": "user", "content": wanted.prompt}],
        max_tokens=wanted.max_tokens,
        temperature=wanted.temperature,
        seed=seed,
        logprobs=True,
        top_logprobs=_TOP,
    )
    [choice] = (await (await Chatter.of(service, user, body)).whole()).choices
    found = choice.logprobs
    assert found is not None, "they were asked for"
    tokens = [
        ShownToken(one.token, one.logprob, [(top.token, top.logprob) for top in one.top_logprobs])
        for one in found.content
    ]
    return ShownAnswer(model, tokens, choice.finish_reason or "")


def _caller(member: SignedIn) -> Caller:
    """A name of its own for each member of each organization: usage is counted by it."""
    who = hashlib.sha256(f"{member.organization_id} {member.user_id}".encode()).hexdigest()
    return Caller(f"console-{who[:12]}", member.organization_id)
