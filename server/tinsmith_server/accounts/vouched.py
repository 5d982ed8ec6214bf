"""Who may come in by a provider's word: members, the invited, and whole domains where settings say so."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.errors import Forbidden

from tinsmith_server.accounts import audit, members
from tinsmith_server.accounts.links import new_secret
from tinsmith_server.accounts.oidc import Identity
from tinsmith_server.accounts.oidc_settings import OidcSettings
from tinsmith_server.accounts.organizations import organization_named
from tinsmith_server.accounts.tables import Invitation, Member, User
from tinsmith_server.db import now

_ORGANIZATION = "default"


async def user_vouched_for(sql: AsyncSession, policy: OidcSettings, who: Identity) -> User:
    """Their account, with every invitation to their address accepted. Raises Forbidden for strangers.

    Whoever comes in this way has a password that nobody knows.
    """
    email = members.checked_email(who.email)
    user = await members.user_of(sql, email)
    places = await _invited_to(sql, email)
    if not places and not await _is_member(sql, user):
        if email.rpartition("@")[2] not in policy.domains or not await members.is_set_up(sql):
            raise Forbidden("You are no member here; ask for an invitation to this address.")
        places = {(await organization_named(sql, _ORGANIZATION)).id: policy.role.label}
    if user is None:
        user = await members.new_user(sql, email, who.name, new_secret())
    for organization_id, role in places.items():
        await _join(sql, user, organization_id, role)
    return user


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
