"""Sampling sessions by owner."""

from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.errors import NotFound

from tinsmith_server.auth import Caller
from tinsmith_server.db import SamplingSession


async def owned_by(sql: AsyncSession, user: Caller, sampler_id: str) -> SamplingSession:
    row = await sql.get(SamplingSession, sampler_id)
    if row is None or row.organization_id != user.organization_id:
        raise NotFound(f"sampling_session_id: there is no sampler {sampler_id[:120]!r}.")
    return row
