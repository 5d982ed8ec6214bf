"""API keys: `tml-<id>-<secret><checksum>`, shown once, kept as a peppered hash.

The checksum lets a mistyped key be told from a wrong one without a look at the database.
"""

import hashlib
import hmac
import secrets
import zlib
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.errors import NotFound

from tinsmith_server.accounts import audit
from tinsmith_server.accounts.organizations import organization_named
from tinsmith_server.db import ApiKey, Organization, now


async def create(
    sql: AsyncSession, pepper: bytes, name: str, organization: str = "default"
) -> tuple[ApiKey, str]:
    """The key's row, and its text, which nobody will see again."""
    owner = await organization_named(sql, organization)
    key_id, secret = secrets.token_hex(6), secrets.token_hex(32)
    row = ApiKey(
        id=key_id, organization_id=owner.id, name=name, secret_hash=_hash(pepper, key_id, secret)
    )
    sql.add(row)
    audit.record(sql, owner.id, None, "organization_key_created", key_id=key_id, name=name)
    return row, f"tml-{key_id}-{secret}{_checksum(key_id, secret)}"


async def find(sql: AsyncSession, pepper: bytes, text: str) -> ApiKey | None:
    """The live key that this text is."""
    parts = text.removeprefix("tml-").split("-")
    if not text.startswith("tml-") or len(parts) != 2 or len(parts[1]) != 72:
        return None
    key_id, secret, checksum = parts[0], parts[1][:64], parts[1][64:]
    if checksum != _checksum(key_id, secret):
        return None
    row = await live(sql, key_id)
    if row is None:
        return None
    return row if hmac.compare_digest(row.secret_hash, _hash(pepper, key_id, secret)) else None


async def live(sql: AsyncSession, key_id: str) -> ApiKey | None:
    """The key of this id, unless it was revoked."""
    row = await sql.get(ApiKey, key_id)
    return None if row is None or row.revoked_at is not None else row


async def listed(sql: AsyncSession) -> Sequence[tuple[ApiKey, str]]:
    """Every key with its organization's name, newest first."""
    query = (
        select(ApiKey, Organization.name)
        .join(Organization, Organization.id == ApiKey.organization_id)
        .order_by(ApiKey.created_at.desc())
    )
    return [(key, name) for key, name in (await sql.execute(query)).all()]


async def revoke(sql: AsyncSession, key_id: str, by: str | None = None) -> ApiKey:
    """From now on; whoever caches keys must be told as well. `by` is a key, or None for an operator."""
    row = await sql.get(ApiKey, key_id)
    if row is None:
        raise NotFound(f"There is no key {key_id!r}; `tinsmith keys list` shows them.")
    if row.revoked_at is None:
        row.revoked_at = now()
        audit.record(sql, row.organization_id, by, "organization_key_revoked", key_id=key_id)
    return row


def _hash(pepper: bytes, key_id: str, secret: str) -> str:
    return hmac.new(pepper, f"{key_id}:{secret}".encode(), hashlib.sha256).hexdigest()


def _checksum(key_id: str, secret: str) -> str:
    return f"{zlib.crc32(f'{key_id}{secret}'.encode()):08x}"
