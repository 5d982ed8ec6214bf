"""Organizations by name. Whoever names a new one has it made: they are an operator's to name."""

import uuid

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from tinsmith_server.db import Organization


async def organization_named(sql: AsyncSession, name: str) -> Organization:
    found = await sql.scalar(select(Organization).where(Organization.name == name))
    if found is None:
        found = Organization(id=f"org-{uuid.uuid4().hex[:12]}", name=name)
        sql.add(found)
        await sql.flush()
    return found
