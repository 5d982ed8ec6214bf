"""Sampling sessions by owner."""

from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.errors import NotFound

from tinsmith_server.auth import Caller
from tinsmith_server.db import SamplingSession
from tinsmith_server.reach import reaches


async def owned_by(sql: AsyncSession, user: Caller, sampler_id: str) -> SamplingSession:
    row = await sql.get(SamplingSession, sampler_id)
    if row is None or not await reaches(sql, user, row):
        raise NotFound(f"sampling_session_id: there is no sampler {sampler_id[:120]!r}.")
    return row
