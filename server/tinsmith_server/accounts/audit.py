"""The audit log: one entry a change, written in the transaction of the change or not at all."""

import uuid
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.paths import TinkerPath

from tinsmith_server.accounts.caller import Caller, SignedIn
from tinsmith_server.db import AuditEntry


def record(
    sql: AsyncSession,
    organization_id: str,
    key_id: str | None,
    event: str,
    /,
    *,
    by_user: str | None = None,
    **details: Any,
) -> None:
    """`event` is `<resource>_<action>`, as the SDK documents it."""
    resource, action = event.split("_", 1)
    entry = AuditEntry(
        id=uuid.uuid4().hex,
        organization_id=organization_id,
        key_id=key_id,
        user_id=by_user,
        resource=resource,
        action=action,
        details=details,
    )
    sql.add(entry)


def record_checkpoint(
    sql: AsyncSession, user: Caller, event: str, path: TinkerPath, **details: Any
) -> None:
    where = {"model_id": path.run_id, "tinker_path": str(path)}
    record(sql, user.organization_id, user.key_id, event, **details, **where)


def record_member(sql: AsyncSession, by: SignedIn, event: str, /, **details: Any) -> None:
    record(sql, by.organization_id, None, event, by_user=by.user_id, **details)
