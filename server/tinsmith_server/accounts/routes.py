"""One's own key: exchange it for a token, look it up, end it."""

from fastapi import APIRouter
from fastapi.responses import Response
from sqlalchemy import select
from tinsmith.protocol.account_bodies import (
    KeyDetails,
    KeyInfo,
    OrganizationDetails,
    TokenIssued,
    UserDetails,
)

from tinsmith_server.accounts import keys, tokens
from tinsmith_server.auth import User
from tinsmith_server.db import ApiKey, Organization
from tinsmith_server.service import Served
from tinsmith_server.wire import answer

router = APIRouter()


@router.post("/auth/token")
async def exchange(user: User, service: Served) -> Response:
    """Whoever must not keep the key may keep this: it ends by itself, and with its key."""
    secret = tokens.token_secret(service.settings.key_pepper)
    return answer(TokenIssued(jwt=tokens.issue(secret, user)))


@router.get("/auth/apikey/me")
async def my_key(user: User, service: Served) -> Response:
    """The SDK wants a number for an id: ours are hexadecimal, so they are one."""
    query = (
        select(ApiKey.name, Organization.name)
        .join(Organization, Organization.id == ApiKey.organization_id)
        .where(ApiKey.id == user.key_id)
    )
    async with service.db.begin() as sql:
        name, organization = (await sql.execute(query)).one()
    info = KeyInfo(
        key_id=int(user.key_id, 16),
        name=name,
        details=KeyDetails(
            org_details=OrganizationDetails(name=organization), user_details=UserDetails()
        ),
    )
    return answer(info)


@router.delete("/auth/apikey/me")
async def end_my_key(user: User, service: Served) -> Response:
    """With every token it was exchanged for, on every API process within a second."""
    async with service.db.begin() as sql:
        await keys.revoke(sql, user.key_id, by=user.key_id)
    service.keys.forget(user.key_id)
    await service.bus.revoke(user.key_id)
    return answer({})
