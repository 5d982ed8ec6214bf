"""Custom losses by session."""

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.errors import NotFound

from tinsmith_server.auth import Caller
from tinsmith_server.db import CustomLoss
from tinsmith_server.reach import reaches


async def graph_of(sql: AsyncSession, user: Caller, loss_id: str) -> bytes:
    row = await sql.get(CustomLoss, loss_id)
    if row is None or not await reaches(sql, user, row):
        raise NotFound(f"loss_fn_config.loss_id: there is no custom loss {loss_id[:120]!r}.")
    return row.graph


async def count(sql: AsyncSession, session_id: str) -> int:
    query = select(func.count()).where(CustomLoss.session_id == session_id)
    return (await sql.scalar(query)) or 0
