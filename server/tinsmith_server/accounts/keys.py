"""API keys: `tml-<id>-<secret><checksum>`, shown once, kept as a peppered hash.

The checksum lets a mistyped key be told from a wrong one without a look at the database.
"""

import hashlib
import hmac
import secrets
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.errors import BadRequest, NotFound

from tinsmith_server.accounts import audit
from tinsmith_server.accounts.caller import Caller
from tinsmith_server.accounts.organizations import organization_named
from tinsmith_server.accounts.projects import check_project_name
from tinsmith_server.accounts.scopes import ALL, Scope, parse_scopes, spelled
from tinsmith_server.db import ApiKey, Organization, now

_LONGEST_GRACE = timedelta(days=30)


@dataclass(frozen=True, kw_only=True)
class KeyTerms:
    """What a key is for."""

    name: str
    scopes: frozenset[Scope] = ALL
    project_id: str | None = None
    expires_at: datetime | None = None
    note: str = ""

    def check(self) -> None:
        if not 1 <= len(self.name.strip()) <= 200:
            raise BadRequest("name: give the key a name of 1 to 200 characters.")
        if len(self.note) > 500:
            raise BadRequest("note: longer than 500 characters.")
        if self.project_id is not None:
            check_project_name(self.project_id)
        if self.expires_at is not None and self.expires_at <= now():
            raise BadRequest("expires_at: it is not in the future.")
        if self.project_id is not None and self.scopes == frozenset({Scope.ADMIN}):
            raise BadRequest("scopes: admin is for the whole organization, not for one project.")


async def create(
    sql: AsyncSession, pepper: bytes, terms: KeyTerms, organization: str = "default"
) -> tuple[ApiKey, str]:
    """For an operator: of an organization that is made if it is new."""
    terms.check()
    owner = await organization_named(sql, organization)
    return await issue(sql, pepper, owner.id, terms)


async def issue(
    sql: AsyncSession,
    pepper: bytes,
    organization_id: str,
    terms: KeyTerms,
    created_by: str | None = None,
) -> tuple[ApiKey, str]:
    """The key's row, and its text, which nobody will see again. `created_by` is a user."""
    terms.check()
    key_id, secret = secrets.token_hex(6), secrets.token_hex(32)
    row = ApiKey(
        id=key_id,
        organization_id=organization_id,
        name=terms.name.strip(),
        secret_hash=_hash(pepper, key_id, secret),
        scopes=spelled(terms.scopes),
        project_id=terms.project_id,
        expires_at=terms.expires_at,
        note=terms.note,
        created_by=created_by,
    )
    sql.add(row)
    details = {"key_id": key_id, "name": row.name, "scopes": row.scopes}
    audit.record(
        sql, organization_id, None, "organization_key_created", by_user=created_by, **details
    )
    return row, f"tml-{key_id}-{secret}{_checksum(key_id, secret)}"


async def rotate(
    sql: AsyncSession, pepper: bytes, row: ApiKey, grace: timedelta, by_user: str | None
) -> tuple[ApiKey, str]:
    """A new key on the same terms; the old one ends after the grace, or at its own time if sooner."""
    if row.revoked_at is not None or not _in_time(row):
        raise BadRequest(f"key: {row.id} has ended; create a new one.")
    if not timedelta() <= grace <= _LONGEST_GRACE:
        raise BadRequest(f"grace: give 0 to {_LONGEST_GRACE.days} days.")
    terms = KeyTerms(
        name=row.name,
        scopes=parse_scopes(row.scopes.split(",")),
        project_id=row.project_id,
        expires_at=row.expires_at,
        note=row.note,
    )
    made, text = await issue(sql, pepper, row.organization_id, terms, row.created_by)
    row.expires_at = min(filter(None, (row.expires_at, now() + grace)))
    details = {"key_id": row.id, "replaced_by": made.id}
    audit.record(
        sql, row.organization_id, None, "organization_key_rotated", by_user=by_user, **details
    )
    return made, text


def caller_of(row: ApiKey) -> Caller:
    """A key of one project never sees what is of the whole organization."""
    scopes = parse_scopes(row.scopes.split(","))
    return Caller(
        row.id,
        row.organization_id,
        until=row.expires_at.timestamp() if row.expires_at else None,
        project_id=row.project_id,
        scopes=scopes - {Scope.ADMIN} if row.project_id else scopes,
    )


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
    """The key of this id, unless it was revoked or has expired."""
    row = await sql.get(ApiKey, key_id)
    return row if row is not None and row.revoked_at is None and _in_time(row) else None


def _in_time(row: ApiKey) -> bool:
    return row.expires_at is None or row.expires_at > now()


async def listed(sql: AsyncSession) -> Sequence[tuple[ApiKey, str]]:
    """Every key with its organization's name, newest first."""
    query = (
        select(ApiKey, Organization.name)
        .join(Organization, Organization.id == ApiKey.organization_id)
        .order_by(ApiKey.created_at.desc())
    )
    return [(key, name) for key, name in (await sql.execute(query)).all()]


async def keys_of(
    sql: AsyncSession, organization_id: str, created_by: str | None = None
) -> Sequence[ApiKey]:
    """Newest first; of one user alone, if one is named."""
    query = select(ApiKey).where(ApiKey.organization_id == organization_id)
    if created_by is not None:
        query = query.where(ApiKey.created_by == created_by)
    return (await sql.scalars(query.order_by(ApiKey.created_at.desc(), ApiKey.id))).all()


async def one(sql: AsyncSession, key_id: str) -> ApiKey:
    """For an operator: of whatever organization, live or not."""
    row = await sql.get(ApiKey, key_id)
    if row is None:
        raise NotFound(f"There is no key {key_id!r}; `tinsmith keys list` shows them.")
    return row


async def revoke(
    sql: AsyncSession, key_id: str, by: str | None = None, by_user: str | None = None
) -> ApiKey:
    """From now on; whoever caches keys must be told as well. `by` is a key; neither: an operator."""
    row = await one(sql, key_id)
    if row.revoked_at is None:
        row.revoked_at = now()
        audit.record(
            sql,
            row.organization_id,
            by,
            "organization_key_revoked",
            by_user=by_user,
            key_id=key_id,
        )
    return row


def _hash(pepper: bytes, key_id: str, secret: str) -> str:
    return hmac.new(pepper, f"{key_id}:{secret}".encode(), hashlib.sha256).hexdigest()


def _checksum(key_id: str, secret: str) -> str:
    return f"{zlib.crc32(f'{key_id}{secret}'.encode()):08x}"
