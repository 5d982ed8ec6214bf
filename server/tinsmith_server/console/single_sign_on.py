"""The way in by an OpenID Connect provider: there with a state, back with a code, each once."""

import hmac
from urllib.parse import urlsplit

import msgspec
from fastapi.responses import RedirectResponse, Response
from starlette.requests import Request
from tinsmith.protocol.errors import Forbidden, NotFound

from tinsmith_server.accounts import sign_in, vouched
from tinsmith_server.accounts.links import digest, new_secret
from tinsmith_server.accounts.oidc import Attempt, Provider, Vouched, new_attempt
from tinsmith_server.console.security import (
    console_router,
    is_https,
    local_path,
    redirect,
    session_secret,
    set_cookie,
    signed_in,
)
from tinsmith_server.service import Served, Service

router = console_router()
_CALLBACK = "/sign-in/provider/callback"
_ATTEMPT_SECONDS = 600


@router.get("/sign-in/provider")
async def leave_for_provider(request: Request, service: Served, next: str = "/") -> Response:
    address, state = await departure(service, next)
    response = RedirectResponse(address, status_code=303)
    remember(request, response, state)
    return response


async def departure(service: Service, next: str, links: str | None = None) -> tuple[str, str]:
    """The address that a browser leaves for, and the state that it takes along."""
    provider = provider_of(service)
    attempt, state = new_attempt(local_path(next), links), new_secret()
    address = await provider.address(attempt, state, _redirect_uri(service))
    data = msgspec.json.encode(attempt)
    await service.bus.redis.set(_attempt_key(state), data, ex=_ATTEMPT_SECONDS)
    return address, state


def remember(request: Request, response: Response, state: str) -> None:
    response.set_cookie(
        _cookie_name(request),
        state,
        max_age=_ATTEMPT_SECONDS,
        path="/",
        secure=is_https(request),
        httponly=True,
        samesite="lax",
    )


@router.get(_CALLBACK)
async def back_from_provider(
    request: Request, service: Served, state: str = "", code: str = "", error: str = ""
) -> Response:
    """Only the browser that left comes back in: or a link could sign somebody in as someone else."""
    provider = provider_of(service)
    attempt = await _attempt(request, service, state)
    if error or not code:
        raise Forbidden("The sign-in provider did not let you in; sign in again.")
    who = await provider.identity(attempt, code, _redirect_uri(service))
    if attempt.links is None:
        response = await _let_in(request, service, provider, attempt, who)
    else:
        response = await _linked(request, service, attempt, who)
    response.delete_cookie(_cookie_name(request), path="/", secure=is_https(request))
    return response


async def _let_in(
    request: Request, service: Service, provider: Provider, attempt: Attempt, who: Vouched
) -> Response:
    async with service.db.begin() as sql:
        user = await vouched.user_vouched_for(sql, provider.settings, who)
        secret = await sign_in.open_session(sql, user, None, session_secret(request))
    response = redirect(attempt.next)
    set_cookie(request, response, secret)
    return response


async def _linked(request: Request, service: Service, attempt: Attempt, who: Vouched) -> Response:
    member = await signed_in(request)
    if member.user_id != attempt.links:
        raise Forbidden("Somebody else has signed in here meanwhile; begin again on page Account.")
    async with service.db.begin() as sql:
        await vouched.link(sql, member, who)
    return redirect(attempt.next)


async def _attempt(request: Request, service: Service, state: str) -> Attempt:
    """Taken out as it is read, so that a state is good once."""
    mine = request.cookies.get(_cookie_name(request), "")
    same = hmac.compare_digest(mine.encode(), state.encode())
    data = await service.bus.redis.getdel(_attempt_key(state)) if state and same else None
    if data is None:
        raise Forbidden("This sign-in is over or was begun in another browser; sign in again.")
    return msgspec.json.decode(data, type=Attempt)


def provider_of(service: Service) -> Provider:
    if service.oidc is None:
        raise NotFound("There is no sign-in provider here; TINSMITH_OIDC_ISSUER names one.")
    return service.oidc


def _redirect_uri(service: Service) -> str:
    """From the settings, never from the request: whoever sends a Host header chooses nothing."""
    public = urlsplit(service.settings.public_url or "")
    return f"{public.scheme}://{public.netloc}{_CALLBACK}"


def _attempt_key(state: str) -> str:
    return f"oidc:{digest(state)}"


def _cookie_name(request: Request) -> str:
    return "__Host-tinsmith-oidc" if is_https(request) else "tinsmith-oidc"
