"""What every console route has: a bounded body, no other site behind it, a member, strict headers.

A route gets all of it by standing on `console_router()`, and says whom it is for by its parameter:
`member: Viewer`, `Member`, `Admin`, `Owner` or `Operator`. One without is for anybody.
"""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any
from urllib.parse import urlencode, urlsplit

from fastapi import APIRouter, Depends
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.types import Message, Receive
from tinsmith.protocol.errors import BadRequest, Forbidden, TinsmithError

from tinsmith_server.accounts import sign_in
from tinsmith_server.accounts.caller import SignedIn
from tinsmith_server.accounts.links import derived
from tinsmith_server.accounts.roles import Role
from tinsmith_server.console.templating import page
from tinsmith_server.settings import Settings

MAX_FORM_BYTES = 1 << 20
_UNSAFE = {"POST", "PUT", "PATCH", "DELETE"}
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; font-src 'self'; connect-src 'self'; manifest-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
"""For pages and for static files; pages are never kept by a cache besides."""


class NotSignedIn(Exception):
    pass


class ConsoleRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                _check_channel(request)
                _check_origin(request)
                response = await handle(_bounded(request))
            except NotSignedIn:
                response = _to_sign_in(request)
            except RequestValidationError:
                # What was sent is not repeated: it may hold a password.
                response = _refused(request, BadRequest("The form is not complete."))
            except TinsmithError as error:
                response = _refused(request, error)
            return _with_headers(request, response)

        return guarded


def console_router() -> APIRouter:
    return APIRouter(route_class=ConsoleRoute, include_in_schema=False)


# Where the browser is


def is_https(request: Request) -> bool:
    """Seen here, or promised by the address that the operator gave."""
    public = urlsplit(_settings(request).public_url or "")
    promised = public.scheme == "https" and request.headers.get("host") == public.netloc
    return promised or request.url.scheme == "https"


def _check_channel(request: Request) -> None:
    """A cookie never crosses a network in the clear; and no foreign name is taken for this machine."""
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname
    if not (is_https(request) or host in _LOOPBACK or _settings(request).allow_http):
        raise BadRequest(
            "Open the console over https, or as http://127.0.0.1 on its own machine. Whoever trusts "
            "the network in between may set TINSMITH_ALLOW_HTTP=1."
        )


def _check_origin(request: Request) -> None:
    """A browser says where a request was made. What says nothing is no browser, and has no cookie to lose."""
    if request.method not in _UNSAFE:
        return
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        same = site in ("same-origin", "none")
    else:
        same = request.headers.get("origin") in _own_origins(request)
    if not same:
        raise Forbidden("This form was sent from another site.")


def _own_origins(request: Request) -> set[str]:
    public = urlsplit(_settings(request).public_url or "")
    scheme = "https" if is_https(request) else "http"
    return {f"{scheme}://{request.headers.get('host', '')}", f"{public.scheme}://{public.netloc}"}


def _bounded(request: Request) -> Request:
    return Request(request.scope, _up_to(request.receive, MAX_FORM_BYTES))


def _up_to(receive: Receive, limit: int) -> Receive:
    left = limit

    async def bounded() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise BadRequest(f"body: larger than the limit of {limit} bytes.")
        return message

    return bounded


def address_of(request: Request) -> str:
    """Where the browser is, as far as the server can tell."""
    return request.client.host if request.client else ""


# The cookie


def cookie_name(request: Request) -> str:
    """`__Host-` makes the browser refuse it from a sister site; it needs https."""
    return "__Host-tinsmith" if is_https(request) else "tinsmith"


def set_cookie(request: Request, response: Response, secret: str) -> None:
    response.set_cookie(
        cookie_name(request),
        secret,
        max_age=int(sign_in.SESSION_LIVES.total_seconds()),
        path="/",
        secure=is_https(request),
        httponly=True,
        samesite="lax",
    )


def clear_cookie(request: Request, response: Response) -> None:
    response.delete_cookie(
        cookie_name(request), path="/", secure=is_https(request), httponly=True, samesite="lax"
    )


def session_secret(request: Request) -> str:
    return request.cookies.get(cookie_name(request), "")


def csrf_token(secret: str) -> str:
    """Of the session, so that a token of another one does not serve."""
    return derived(secret.encode(), "csrf")


# Who it is


async def signed_in(request: Request) -> SignedIn:
    """The member behind the cookie. An unsafe request carries the session's token as well."""
    secret = session_secret(request)
    if not secret:
        raise NotSignedIn
    async with request.app.state.service.db.begin() as sql:
        member = await sign_in.signed_in(sql, secret)
    if member is None:
        raise NotSignedIn
    request.state.member, request.state.csrf_token = member, csrf_token(secret)
    if request.method in _UNSAFE:
        await _check_csrf(request, secret)
    elif member.role >= Role.ADMIN:
        allowances = request.app.state.service.allowances
        request.state.warnings = await allowances.nearly_spent(member.organization_id)
    return member


async def _check_csrf(request: Request, secret: str) -> None:
    sent = request.headers.get("x-csrf-token")
    if sent is None:
        sent = str((await request.form()).get("csrf_token", ""))
    if sent != csrf_token(secret):
        raise Forbidden("This form is out of date; load the page again.")


Check = Callable[[SignedIn], Coroutine[Any, Any, SignedIn]]
REQUIRED: dict[Callable[..., Any], str] = {}
"""Whom each of the dependencies below lets through; the table of routes is made from it."""


def _at_least(role: Role) -> Check:
    async def check(member: Annotated[SignedIn, Depends(signed_in)]) -> SignedIn:
        if member.role < role:
            raise Forbidden(f"This is for the role {role.label} and above.")
        return member

    REQUIRED[check] = role.label
    return check


async def _operator(member: Annotated[SignedIn, Depends(signed_in)]) -> SignedIn:
    if not member.operator:
        raise Forbidden("This is for operators of the service.")
    return member


REQUIRED[_operator] = "operator"
Viewer = Annotated[SignedIn, Depends(_at_least(Role.VIEWER))]
Member = Annotated[SignedIn, Depends(_at_least(Role.MEMBER))]
Admin = Annotated[SignedIn, Depends(_at_least(Role.ADMIN))]
Owner = Annotated[SignedIn, Depends(_at_least(Role.OWNER))]
Operator = Annotated[SignedIn, Depends(_operator)]


# What comes back


def local_path(path: str) -> str:
    """Where to go next, if that is here; `//elsewhere` and `/\\elsewhere` are not."""
    safe = path.startswith("/") and path[1:2] not in ("/", "\\") and path.isprintable()
    return path if safe else "/"


def redirect(path: str) -> Response:
    return RedirectResponse(local_path(path), status_code=303)


def _to_sign_in(request: Request) -> Response:
    """Back to this page afterwards, if it is a page."""
    if request.method != "GET":
        return redirect("/sign-in")
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return redirect(f"/sign-in?{urlencode({'next': here})}")


def _refused(request: Request, error: TinsmithError) -> Response:
    response = page(request, "message.html", status=error.status, message=error.message)
    response.headers.update(error.headers)
    return response


def no_such_page(request: Request) -> Response:
    """For a browser that asks for what is not there; nobody is looked up for it."""
    message = f"There is no {request.url.path[:200]} here."
    return _with_headers(request, page(request, "message.html", 404, message=message))


def _with_headers(request: Request, response: Response) -> Response:
    response.headers.update(HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")
    if is_https(request):
        response.headers["Strict-Transport-Security"] = "max-age=31536000"
    return response


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.service.settings
    return settings
