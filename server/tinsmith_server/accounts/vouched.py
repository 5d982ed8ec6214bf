"""Who may come in by a provider's word: accounts that are linked, the invited, and whole domains where
settings say so.

An account is found by the provider's own name for its user (issuer and subject), never by an address,
which a provider may let its users change. So an account that is there already is linked by its owner
alone, who signs in by password first; the first sign-in of anybody else makes a new account.
"""

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.errors import BadRequest, Forbidden

from tinsmith_server.accounts import audit, members
from tinsmith_server.accounts.caller import SignedIn
from tinsmith_server.accounts.links import new_secret
from tinsmith_server.accounts.oidc import Vouched
from tinsmith_server.accounts.oidc_settings import OidcSettings
from tinsmith_server.accounts.organizations import organization_named
from tinsmith_server.accounts.tables import Identity, Invitation, Member, User
from tinsmith_server.db import now

_ORGANIZATION = "default"


async def user_vouched_for(sql: AsyncSession, policy: OidcSettings, who: Vouched) -> User:
    """Their account, with every invitation to its address accepted. Raises Forbidden for strangers.

    Whoever comes in this way for the first time has a password that nobody knows.
    """
    user = await _linked(sql, who)
    email = user.email if user else members.checked_email(who.email)
    if user is None and await members.user_of(sql, email) is not None:
        raise Forbidden(
            "There is an account with this address, and it is not linked to the sign-in provider. "
            "Sign in with its password, then link it on the page Account."
        )
    places = await _invited_to(sql, email)
    if not places and not await _is_member(sql, user):
        if email.rpartition("@")[2] not in policy.domains or not await members.is_set_up(sql):
            raise Forbidden("You are no member here; ask for an invitation to this address.")
        places = {(await organization_named(sql, _ORGANIZATION)).id: policy.role.label}
    if user is None:
        user = await members.new_user(sql, email, who.name, new_secret())
        sql.add(Identity(issuer=who.issuer, subject=who.subject, user_id=user.id))
    for organization_id, role in places.items():
        await _join(sql, user, organization_id, role)
    return user


async def link(sql: AsyncSession, by: SignedIn, who: Vouched) -> None:
    """Let the provider's user into this account from now on, and into no other."""
    linked = await _linked(sql, who)
    if linked is not None:
        whose = "this account" if linked.id == by.user_id else "another account"
        raise BadRequest(f"The sign-in provider's user is linked to {whose} already.")
    if await is_linked(sql, who.issuer, by.user_id):
        raise BadRequest("This account is linked to another user of the provider; unlink it first.")
    sql.add(Identity(issuer=who.issuer, subject=who.subject, user_id=by.user_id))
    audit.record_member(sql, by, "organization_member_provider_linked", issuer=who.issuer)


async def unlink(sql: AsyncSession, by: SignedIn, issuer: str) -> None:
    await sql.execute(
        delete(Identity).where(Identity.user_id == by.user_id, Identity.issuer == issuer)
    )
    audit.record_member(sql, by, "organization_member_provider_unlinked", issuer=issuer)


async def is_linked(sql: AsyncSession, issuer: str, user_id: str) -> bool:
    query = select(Identity.subject).where(Identity.issuer == issuer, Identity.user_id == user_id)
    return await sql.scalar(query.limit(1)) is not None


async def _linked(sql: AsyncSession, who: Vouched) -> User | None:
    query = (
        select(User)
        .join(Identity, Identity.user_id == User.id)
        .where(Identity.issuer == who.issuer, Identity.subject == who.subject)
    )
    return await sql.scalar(query)


async def _is_member(sql: AsyncSession, user: User | None) -> bool:
    if user is None:
        return False
    query = select(Member.organization_id).where(Member.user_id == user.id).limit(1)
    return await sql.scalar(query) is not None


async def _invited_to(sql: AsyncSession, email: str) -> dict[str, str]:
    """Role by organization. The invitations are used up, and locked until that is so."""
    query = select(Invitation).where(
        Invitation.email == email, Invitation.used_at.is_(None), Invitation.expires_at > now()
    )
    rows = (await sql.scalars(query.order_by(Invitation.created_at).with_for_update())).all()
    for row in rows:
        row.used_at = now()
    return {row.organization_id: row.role for row in rows}


async def _join(sql: AsyncSession, user: User, organization_id: str, role: str) -> None:
    if await sql.get(Member, (organization_id, user.id)) is not None:
        return
    sql.add(Member(organization_id=organization_id, user_id=user.id, role=role))
    event = "organization_member_joined"
    audit.record(sql, organization_id, None, event, user_id=user.id, role=role, by="oidc")
