"""The way in and out: first set-up, invitations, signing in, signing out, one's own account."""

from typing import Annotated

from fastapi import Form, Request
from fastapi.responses import Response
from tinsmith.protocol.errors import BadRequest, Forbidden, TinsmithError, TooMany

from tinsmith_server.accounts import audit, members, sign_in, two_factor
from tinsmith_server.accounts.sign_in import Credentials, Throttle
from tinsmith_server.accounts.tables import User
from tinsmith_server.console.security import (
    Viewer,
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
    given = Credentials(email, password, address=_address(request))
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
    given = Credentials(email, password, code, _address(request))
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


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


# One's own account


@router.get("/account")
async def account_page(request: Request, member: Viewer, service: Served) -> Response:
    return await _account(request, member, service)


async def _account(
    request: Request, member: Viewer, service: Service, error: str | None = None
) -> Response:
    nonce = two_factor.new_nonce()
    pepper = service.settings.key_pepper
    async with service.db.begin() as sql:
        user = await sql.get_one(User, member.user_id)
        organizations = await sign_in.organizations_of(sql, member.user_id)
    return page(
        request,
        "account.html",
        400 if error else 200,
        two_factor=user.totp_nonce is not None,
        nonce=nonce,
        secret=two_factor.secret_of(pepper, nonce),
        app_address=two_factor.address_for_app(pepper, nonce, user.email),
        organizations=organizations,
        error=error,
    )


@router.post("/account/password")
async def change_password(
    request: Request, member: Viewer, service: Served, old: Text, new: Text
) -> Response:
    given = Credentials(member.email, old, address=_address(request))
    try:
        await Throttle(service.bus.redis).count(given)
        async with service.db.begin() as sql:
            await members.change_password(sql, member.user_id, old, new)
            audit.record_member(sql, member, "organization_member_password_changed")
    except (BadRequest, Forbidden, TooMany) as error:
        return await _account(request, member, service, error.message)
    return redirect("/sign-in")


@router.post("/account/two-factor")
async def turn_on(
    request: Request, member: Viewer, service: Served, nonce: Text, code: Text
) -> Response:
    try:
        async with service.db.begin() as sql:
            pepper = service.settings.key_pepper
            await two_factor.turn_on(sql, pepper, member.user_id, nonce, code)
            audit.record_member(sql, member, "organization_member_two_factor_on")
    except BadRequest as error:
        return await _account(request, member, service, error.message)
    return redirect("/account")


@router.post("/account/two-factor/off")
async def turn_off(
    request: Request, member: Viewer, service: Served, password: Text, code: Text
) -> Response:
    """Whoever found an open browser does not know the password."""
    given = Credentials(member.email, password, code, _address(request))
    try:
        await Throttle(service.bus.redis).count(given)
        async with service.db.begin() as sql:
            await sign_in.verified(sql, service.settings.key_pepper, given)
            await two_factor.turn_off(sql, member.user_id)
            audit.record_member(sql, member, "organization_member_two_factor_off")
    except (Forbidden, TooMany) as error:
        return await _account(request, member, service, error.message)
    return redirect("/account")


@router.post("/account/organization")
async def look_at(
    request: Request, member: Viewer, service: Served, organization_id: Text
) -> Response:
    async with service.db.begin() as sql:
        await sign_in.look_at(sql, session_secret(request), member, organization_id)
    return redirect("/")
