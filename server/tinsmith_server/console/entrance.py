"""The way in and out: first set-up, invitations, signing in, signing out."""

from typing import Annotated

from fastapi import Form, Request
from fastapi.responses import Response
from tinsmith.protocol.errors import BadRequest, Forbidden, TinsmithError, TooMany

from tinsmith_server.accounts import members, sign_in
from tinsmith_server.accounts.sign_in import Credentials, Throttle
from tinsmith_server.console.security import (
    Viewer,
    address_of,
    clear_cookie,
    console_router,
    local_path,
    redirect,
    session_secret,
    set_cookie,
)
from tinsmith_server.console.templating import page
from tinsmith_server.db import Organization
from tinsmith_server.service import Served, Service

router = console_router()
Text = Annotated[str, Form()]


# The first owner


@router.get("/setup")
async def setup_page(request: Request, service: Served, token: str = "") -> Response:
    async with service.db.begin() as sql:
        if await members.is_set_up(sql):
            return redirect("/sign-in")
    return page(request, "setup.html", token=token, error=None)


@router.post("/setup")
async def setup(
    request: Request, service: Served, token: Text, email: Text, name: Text, password: Text
) -> Response:
    try:
        async with service.db.begin() as sql:
            pepper = service.settings.key_pepper
            user = await members.set_up(sql, pepper, token, email, name, password)
            secret = await sign_in.open_session(sql, user, None, session_secret(request))
    except BadRequest as error:
        return page(request, "setup.html", 400, token=token, error=error.message)
    return _entered(request, secret, "/")


# Invitations


@router.get("/invitation")
async def invitation_page(request: Request, service: Served, token: str = "") -> Response:
    return await _invitation(request, service, token)


async def _invitation(
    request: Request, service: Service, token: str, error: TinsmithError | None = None
) -> Response:
    async with service.db.begin() as sql:
        row = await members.invitation(sql, token)
        organization = await sql.get_one(Organization, row.organization_id)
    return page(
        request,
        "invitation.html",
        error.status if error else 200,
        token=token,
        organization=organization.name,
        role=row.role,
        email=row.email or "",
        error=error.message if error else None,
    )


@router.post("/invitation")
async def accept(
    request: Request, service: Served, token: Text, email: Text, name: Text, password: Text
) -> Response:
    """Throttled as signing in is, because an account that is there already is asked its password."""
    given = Credentials(email, password, address=address_of(request))
    try:
        await Throttle(service.bus.redis).count(given)
        async with service.db.begin() as sql:
            user, organization = await members.accept(sql, token, email, name, password)
            secret = await sign_in.open_session(sql, user, organization, session_secret(request))
    except (BadRequest, TooMany) as error:
        return await _invitation(request, service, token, error)
    return _entered(request, secret, "/")


# In and out


@router.get("/sign-in")
async def sign_in_page(request: Request, service: Served, next: str = "/") -> Response:
    return page(
        request,
        "sign_in.html",
        next=local_path(next),
        email="",
        error=None,
        provider=service.oidc is not None,
    )


@router.post("/sign-in")
async def enter(
    request: Request,
    service: Served,
    email: Text,
    password: Text,
    code: Text = "",
    next: Text = "/",
) -> Response:
    given = Credentials(email, password, code, address_of(request))
    throttle = Throttle(service.bus.redis)
    try:
        await throttle.count(given)
        async with service.db.begin() as sql:
            user = await sign_in.verified(sql, service.settings.key_pepper, given)
            secret = await sign_in.open_session(sql, user, None, session_secret(request))
    except (Forbidden, TooMany) as error:
        where = local_path(next)
        return page(
            request,
            "sign_in.html",
            error.status,
            next=where,
            email=email,
            error=error.message,
            provider=service.oidc is not None,
        )
    await throttle.clear(given)
    return _entered(request, secret, next)


@router.post("/sign-out")
async def leave(request: Request, member: Viewer, service: Served) -> Response:
    async with service.db.begin() as sql:
        await sign_in.close_session(sql, session_secret(request))
    response = redirect("/sign-in")
    clear_cookie(request, response)
    return response


def _entered(request: Request, secret: str, path: str) -> Response:
    response = redirect(path)
    set_cookie(request, response, secret)
    return response
