"""People of an organization: the first one, invitations, roles, leaving. Knows no HTTP."""

import hmac
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.errors import BadRequest, Forbidden, NotFound

from tinsmith_server.accounts import audit, passwords
from tinsmith_server.accounts.caller import SignedIn
from tinsmith_server.accounts.links import derived, digest, new_secret
from tinsmith_server.accounts.organizations import organization_named
from tinsmith_server.accounts.roles import Role, check_may_give
from tinsmith_server.accounts.tables import ConsoleSession, Invitation, Member, User
from tinsmith_server.db import now

INVITATION_LIVES = timedelta(days=7)
_SETUP = "setup"


@dataclass(frozen=True)
class MemberRow:
    user_id: str
    email: str
    name: str
    role: Role
    two_factor: bool
    since: datetime


# The first one


def setup_secret(pepper: bytes) -> str:
    return derived(pepper, "first owner")


async def is_set_up(sql: AsyncSession) -> bool:
    """Whether anybody is there yet."""
    return bool(await sql.scalar(select(func.count()).select_from(User)))


async def set_up(
    sql: AsyncSession, pepper: bytes, secret: str, email: str, name: str, password: str
) -> User:
    """The first owner, who is an operator too. The row of the link makes it a thing of one time."""
    right = hmac.compare_digest(secret.encode(), setup_secret(pepper).encode())
    if not right or await is_set_up(sql) or await sql.get(Invitation, _SETUP) is not None:
        raise NotFound("This link is not valid, or somebody has used it already.")
    organization = await organization_named(sql, "default")
    used = Invitation(
        id=_SETUP,
        organization_id=organization.id,
        role=Role.OWNER.label,
        expires_at=now(),
        used_at=now(),
    )
    sql.add(used)
    user = await new_user(sql, email, name, password, operator=True)
    sql.add(Member(organization_id=organization.id, user_id=user.id, role=Role.OWNER.label))
    audit.record(
        sql, organization.id, None, "organization_member_joined", user_id=user.id, role="owner"
    )
    return user


# Invitations


async def invite(
    sql: AsyncSession, by: SignedIn, role: Role, email: str | None = None
) -> tuple[Invitation, str]:
    """The invitation's row, and the secret for its link, which nobody will see again."""
    check_may_give(by.role, role)
    row, secret = invitation_to(by.organization_id, role, email, by.user_id)
    sql.add(row)
    audit.record_member(sql, by, "organization_member_invited", role=role.label, email=row.email)
    return row, secret


def invitation_to(
    organization_id: str, role: Role, email: str | None, invited_by: str | None
) -> tuple[Invitation, str]:
    secret = new_secret()
    row = Invitation(
        id=digest(secret),
        organization_id=organization_id,
        role=role.label,
        email=checked_email(email) if email else None,
        invited_by=invited_by,
        expires_at=now() + INVITATION_LIVES,
    )
    return row, secret


async def invitations(sql: AsyncSession, organization_id: str) -> Sequence[Invitation]:
    """Those that can still be used, newest first."""
    query = (
        select(Invitation)
        .where(
            Invitation.organization_id == organization_id,
            Invitation.used_at.is_(None),
            Invitation.expires_at > now(),
        )
        .order_by(Invitation.created_at.desc())
    )
    return (await sql.scalars(query)).all()


async def withdraw(sql: AsyncSession, by: SignedIn, invitation_id: str) -> None:
    row = await sql.get(Invitation, invitation_id)
    if row is None or row.organization_id != by.organization_id or row.used_at is not None:
        raise NotFound("There is no such invitation.")
    check_may_give(by.role, Role.parse(row.role))
    await sql.delete(row)
    audit.record_member(sql, by, "organization_invitation_withdrawn", role=row.role)


async def invitation(sql: AsyncSession, secret: str) -> Invitation:
    """The invitation behind a link, if it can still be used. Locked, so that it is used once."""
    row = await sql.get(Invitation, digest(secret), with_for_update=True)
    if row is None or row.used_at is not None or row.expires_at <= now():
        raise NotFound("This invitation is not valid any more; ask for another one.")
    return row


async def accept(
    sql: AsyncSession, secret: str, email: str, name: str, password: str
) -> tuple[User, str]:
    """A new user who joined by a link, or one who is there already and knows the password."""
    row = await invitation(sql, secret)
    email = checked_email(email)
    if row.email not in (None, email):
        raise BadRequest("email: the invitation is for another address.")
    user = await user_of(sql, email)
    if user is None:
        user = await new_user(sql, email, name, password)
    elif not await passwords.matches(user.password_hash, password):
        raise BadRequest("password: it is not the one of this account.")
    if await sql.get(Member, (row.organization_id, user.id)) is not None:
        raise BadRequest("email: this account is a member already; sign in.")
    row.used_at = now()
    sql.add(Member(organization_id=row.organization_id, user_id=user.id, role=row.role))
    audit.record(
        sql,
        row.organization_id,
        None,
        "organization_member_joined",
        user_id=user.id,
        role=row.role,
    )
    return user, row.organization_id


# Members


async def members(sql: AsyncSession, organization_id: str) -> list[MemberRow]:
    """By e-mail address."""
    query = (
        select(Member, User)
        .join(User, User.id == Member.user_id)
        .where(Member.organization_id == organization_id)
        .order_by(User.email)
    )
    return [
        MemberRow(
            user.id,
            user.email,
            user.name,
            Role.parse(member.role),
            user.totp_nonce is not None,
            member.created_at,
        )
        for member, user in (await sql.execute(query)).all()
    ]


async def set_role(sql: AsyncSession, by: SignedIn, user_id: str, role: Role) -> None:
    row = await _other(sql, by, user_id)
    check_may_give(by.role, role)
    if row.role == Role.OWNER.label and role is not Role.OWNER:
        await _check_owner_left(sql, by.organization_id)
    row.role = role.label
    audit.record_member(
        sql, by, "organization_member_role_changed", member=user_id, role=role.label
    )


async def remove(sql: AsyncSession, by: SignedIn, user_id: str) -> None:
    """From this organization; browsers that look at it are signed out. Anybody may leave."""
    row = await _other(sql, by, user_id)
    if row.role == Role.OWNER.label:
        await _check_owner_left(sql, by.organization_id)
    await sql.execute(
        delete(ConsoleSession).where(
            ConsoleSession.user_id == user_id,
            ConsoleSession.organization_id == by.organization_id,
        )
    )
    await sql.delete(row)
    audit.record_member(sql, by, "organization_member_removed", member=user_id)


async def _other(sql: AsyncSession, by: SignedIn, user_id: str) -> Member:
    row = await sql.get(Member, (by.organization_id, user_id))
    if row is None:
        raise NotFound("There is no such member.")
    if user_id != by.user_id:
        check_may_give(by.role, Role.parse(row.role))
    return row


async def _check_owner_left(sql: AsyncSession, organization_id: str) -> None:
    """The rows are locked, or two owners could unmake each other at the same moment."""
    owners = (
        select(Member)
        .where(Member.organization_id == organization_id, Member.role == Role.OWNER.label)
        .with_for_update()
    )
    if len((await sql.scalars(owners)).all()) < 2:
        raise BadRequest("role: an organization keeps at least one owner; make another one first.")


# Users


async def user_of(sql: AsyncSession, email: str) -> User | None:
    return await sql.scalar(select(User).where(User.email == email.strip().lower()))


async def change_password(sql: AsyncSession, user_id: str, old: str, new: str) -> None:
    """Every browser of theirs is signed out."""
    user = await sql.get_one(User, user_id)
    if not await passwords.matches(user.password_hash, old):
        raise Forbidden("password: it is not the one of this account.")
    user.password_hash = await passwords.hashed(new)
    await sql.execute(delete(ConsoleSession).where(ConsoleSession.user_id == user_id))


async def new_user(
    sql: AsyncSession, email: str, name: str, password: str, *, operator: bool = False
) -> User:
    """An account that belongs nowhere yet."""
    user = User(
        id=uuid.uuid4().hex,
        email=checked_email(email),
        name=name.strip()[:200] or email.partition("@")[0],
        password_hash=await passwords.hashed(password),
        operator=operator,
    )
    sql.add(user)
    await sql.flush()
    return user


def checked_email(email: str) -> str:
    email = email.strip().lower()
    before, at, after = email.partition("@")
    if not (before and at and after) or len(email) > 254 or not email.isprintable():
        raise BadRequest("email: give an address, as in ada@example.org.")
    return email
