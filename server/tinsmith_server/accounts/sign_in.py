"""Signing in and out: throttled, in constant time, and always with a session that is new."""

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.errors import Forbidden, NotFound, TooMany

from tinsmith_server.accounts import audit, passwords, two_factor
from tinsmith_server.accounts.caller import SignedIn
from tinsmith_server.accounts.links import digest, new_secret
from tinsmith_server.accounts.members import user_of
from tinsmith_server.accounts.roles import Role
from tinsmith_server.accounts.tables import ConsoleSession, Member, User
from tinsmith_server.db import Organization, now

SESSION_LIVES = timedelta(days=7)
_WINDOW_SECONDS = 900
_TRIES = {"account": 10, "address": 50}
_WRONG = "The e-mail address, the password or the code is wrong."


@dataclass(frozen=True)
class Credentials:
    email: str
    password: str
    code: str = ""
    """Of the second factor, for whoever has one."""
    address: str = ""
    """Where the browser is, as far as the server can tell."""


class Throttle:
    """Counts tries before they are made, so that a hundred at once are a hundred."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis

    async def count(self, given: Credentials) -> None:
        """Raises TooMany. The tries of an account and of an address are counted apart."""
        for kind, who in (("address", given.address), ("account", given.email.strip().lower())):
            key = _tries_key(kind, who)
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.set(key, 0, ex=_WINDOW_SECONDS, nx=True)
                pipe.incr(key)
                pipe.ttl(key)
                _, tries, left = await pipe.execute()
            if tries > _TRIES[kind]:
                raise TooMany("Too many tries to sign in; wait a while.", max(1, left))

    async def clear(self, given: Credentials) -> None:
        """Whoever knew the password is not guessing. The address goes on being counted."""
        await self._redis.delete(_tries_key("account", given.email.strip().lower()))


def _tries_key(kind: str, who: str) -> str:
    return f"signin:{kind}:{hashlib.sha256(who.encode()).hexdigest()[:32]}"


async def verified(sql: AsyncSession, pepper: bytes, given: Credentials) -> User:
    """The user of these credentials; one sentence for everything that can be wrong with them."""
    user = await user_of(sql, given.email)
    right = await passwords.matches(user.password_hash if user else None, given.password)
    if user is None or not right or not await two_factor.passes(sql, pepper, user.id, given.code):
        raise Forbidden(_WRONG)
    return user


async def open_session(
    sql: AsyncSession, user: User, organization_id: str | None = None, replacing: str | None = None
) -> str:
    """A new session's secret, for a cookie. The one that the browser came with ends."""
    if replacing:
        await close_session(sql, replacing)
    await sql.execute(delete(ConsoleSession).where(ConsoleSession.expires_at < now()))
    if organization_id is None:
        first = select(Member.organization_id).where(Member.user_id == user.id)
        organization_id = await sql.scalar(first.order_by(Member.created_at).limit(1))
    if organization_id is None:
        raise Forbidden("This account belongs to no organization any more; ask for an invitation.")
    secret = new_secret()
    row = ConsoleSession(
        id=digest(secret),
        user_id=user.id,
        organization_id=organization_id,
        expires_at=now() + SESSION_LIVES,
    )
    sql.add(row)
    audit.record(sql, organization_id, None, "organization_member_signed_in", by_user=user.id)
    return secret


async def close_session(sql: AsyncSession, secret: str) -> None:
    await sql.execute(delete(ConsoleSession).where(ConsoleSession.id == digest(secret)))


async def signed_in(sql: AsyncSession, secret: str) -> SignedIn | None:
    """Whose session this is, with the role that they have by now."""
    query = (
        select(User, Organization, Member.role)
        .join(ConsoleSession, ConsoleSession.user_id == User.id)
        .join(Organization, Organization.id == ConsoleSession.organization_id)
        .join(
            Member,
            (Member.user_id == User.id) & (Member.organization_id == Organization.id),
        )
        .where(ConsoleSession.id == digest(secret), ConsoleSession.expires_at > now())
    )
    row = (await sql.execute(query)).first()
    if row is None:
        return None
    user, organization, role = row
    return SignedIn(
        user.id,
        user.email,
        user.name,
        organization.id,
        organization.name,
        Role.parse(role),
        user.operator,
    )


async def organizations_of(sql: AsyncSession, user_id: str) -> list[Organization]:
    query = (
        select(Organization)
        .join(Member, Member.organization_id == Organization.id)
        .where(Member.user_id == user_id)
        .order_by(Organization.name)
    )
    return list((await sql.scalars(query)).all())


async def look_at(sql: AsyncSession, secret: str, by: SignedIn, organization_id: str) -> None:
    """Turn the session to another of the user's organizations."""
    if await sql.get(Member, (organization_id, by.user_id)) is None:
        raise NotFound("There is no such organization.")
    row = await sql.get_one(ConsoleSession, digest(secret))
    row.organization_id = organization_id
