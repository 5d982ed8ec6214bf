"""One's own account: password, second factor, the sign-in provider, which organization is looked at."""

from typing import Annotated

from fastapi import Form, Request
from fastapi.responses import Response
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.errors import BadRequest, Forbidden, TooMany

from tinsmith_server.accounts import audit, members, sign_in, two_factor, vouched
from tinsmith_server.accounts.sign_in import Credentials, Throttle
from tinsmith_server.accounts.tables import User
from tinsmith_server.console import single_sign_on
from tinsmith_server.console.security import (
    Viewer,
    address_of,
    console_router,
    redirect,
    session_secret,
)
from tinsmith_server.console.templating import page
from tinsmith_server.service import Served, Service

router = console_router()
Text = Annotated[str, Form()]


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
        linked = service.oidc is not None and await vouched.is_linked(
            sql, service.oidc.settings.issuer, member.user_id
        )
    return page(
        request,
        "account.html",
        400 if error else 200,
        two_factor=user.totp_nonce is not None,
        nonce=nonce,
        secret=two_factor.secret_of(pepper, nonce),
        app_address=two_factor.address_for_app(pepper, nonce, user.email),
        organizations=organizations,
        issuer=service.oidc.settings.issuer if service.oidc else None,
        linked=linked,
        error=error,
    )


@router.post("/account/password")
async def change_password(
    request: Request, member: Viewer, service: Served, old: Text, new: Text
) -> Response:
    given = Credentials(member.email, old, address=address_of(request))
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
    try:
        async with service.db.begin() as sql:
            await _check_it_is_them(request, member, service, sql, password, code)
            await two_factor.turn_off(sql, member.user_id)
            audit.record_member(sql, member, "organization_member_two_factor_off")
    except (Forbidden, TooMany) as error:
        return await _account(request, member, service, error.message)
    return redirect("/account")


@router.post("/account/provider")
async def link_provider(
    request: Request, member: Viewer, service: Served, password: Text, code: Text = ""
) -> Response:
    """On to the provider by a link: a form may not lead to another site."""
    try:
        async with service.db.begin() as sql:
            await _check_it_is_them(request, member, service, sql, password, code)
    except (Forbidden, TooMany) as error:
        return await _account(request, member, service, error.message)
    address, state = await single_sign_on.departure(service, "/account", links=member.user_id)
    response = page(request, "to_provider.html", address=address)
    single_sign_on.remember(request, response, state)
    return response


@router.post("/account/provider/off")
async def unlink_provider(
    request: Request, member: Viewer, service: Served, password: Text, code: Text = ""
) -> Response:
    """Whoever knows no password keeps the way in that they have."""
    provider = single_sign_on.provider_of(service)
    try:
        async with service.db.begin() as sql:
            await _check_it_is_them(request, member, service, sql, password, code)
            await vouched.unlink(sql, member, provider.settings.issuer)
    except (Forbidden, TooMany) as error:
        return await _account(request, member, service, error.message)
    return redirect("/account")


async def _check_it_is_them(
    request: Request,
    member: Viewer,
    service: Service,
    sql: AsyncSession,
    password: str,
    code: str,
) -> None:
    given = Credentials(member.email, password, code, address_of(request))
    await Throttle(service.bus.redis).count(given)
    await sign_in.verified(sql, service.settings.key_pepper, given)


@router.post("/account/organization")
async def look_at(
    request: Request, member: Viewer, service: Served, organization_id: Text
) -> Response:
    async with service.db.begin() as sql:
        await sign_in.look_at(sql, session_secret(request), member, organization_id)
    return redirect("/")
