"""Keys as members handle them: their own, or everybody's for an admin; told to every process at once."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.errors import NotFound

from tinsmith_server.accounts import keys
from tinsmith_server.accounts.caller import SignedIn
from tinsmith_server.accounts.keys import KeyTerms
from tinsmith_server.accounts.roles import Role
from tinsmith_server.db import ApiKey
from tinsmith_server.service import Service


async def list_keys(service: Service, by: SignedIn) -> Sequence[ApiKey]:
    """Newest first. A member sees their own; viewers have none."""
    mine_alone = None if by.role >= Role.ADMIN else by.user_id
    async with service.db.begin() as sql:
        return await keys.keys_of(sql, by.organization_id, mine_alone)


async def one_key(service: Service, by: SignedIn, key_id: str) -> ApiKey:
    async with service.db.begin() as sql:
        return await _reachable(sql, by, key_id)


async def create_key(service: Service, by: SignedIn, terms: KeyTerms) -> tuple[ApiKey, str]:
    """The row, and the key's text, which nobody will see again."""
    async with service.db.begin() as sql:
        pepper = service.settings.key_pepper
        return await keys.issue(sql, pepper, by.organization_id, terms, by.user_id)


async def rotate_key(
    service: Service, by: SignedIn, key_id: str, grace: timedelta
) -> tuple[ApiKey, str]:
    """The new key. The old one goes on for the grace, on every API process."""
    async with service.db.begin() as sql:
        row = await _reachable(sql, by, key_id)
        made = await keys.rotate(sql, service.settings.key_pepper, row, grace, by.user_id)
    await _tell(service, key_id)
    return made


async def revoke_key(service: Service, by: SignedIn, key_id: str) -> None:
    """On every API process within a second."""
    async with service.db.begin() as sql:
        await _reachable(sql, by, key_id)
        await keys.revoke(sql, key_id, by_user=by.user_id)
    await _tell(service, key_id)


async def _tell(service: Service, key_id: str) -> None:
    """Here at once; elsewhere when they hear it. Whoever still may is looked up anew."""
    service.keys.forget(key_id)
    await service.bus.revoke(key_id)


async def _reachable(sql: AsyncSession, by: SignedIn, key_id: str) -> ApiKey:
    row = await sql.get(ApiKey, key_id)
    mine = row is not None and row.organization_id == by.organization_id
    if row is None or not mine or (by.role < Role.ADMIN and row.created_by != by.user_id):
        raise NotFound(f"There is no key {key_id[:40]!r}.")
    return row
