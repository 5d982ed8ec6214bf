"""A checkpoint that no training here has saved stands in a run that nobody can train.

The run's session is finished already, so that no op of it is ever accepted.
"""

import secrets
import uuid

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.paths import run_id

from tinsmith_server.accounts.caller import Caller
from tinsmith_server.db import Checkpoint, Session, TrainingRun, now


async def known(sql: AsyncSession, request_id: str) -> Checkpoint | None:
    """What this request has placed already."""
    return await sql.scalar(select(Checkpoint).where(Checkpoint.request_id == request_id))


async def new_run(
    sql: AsyncSession, user: Caller, project_id: str, display_name: str, like: TrainingRun
) -> TrainingRun:
    """What `like` says of model, rank, optimizer and modules."""
    session = Session(
        id=f"sess-{secrets.token_hex(10)}",
        organization_id=user.organization_id,
        project_id=project_id,
        display_name=display_name[:200],
        sdk_version="",
        finished_at=now(),
        finish_reason="success",
        key_id=user.key_id,
    )
    sql.add(session)
    await sql.flush()
    run = TrainingRun(
        id=run_id(session.id, 0),
        session_id=session.id,
        organization_id=user.organization_id,
        base_model=like.base_model,
        lora_rank=like.lora_rank,
        optimizer=like.optimizer,
        train_attn=like.train_attn,
        train_mlp=like.train_mlp,
        train_unembed=like.train_unembed,
    )
    sql.add(run)
    await sql.flush()
    return run


def checkpoint_in(
    sql: AsyncSession, run: TrainingRun, request_id: str, kind: str, name: str | None
) -> Checkpoint:
    """Not ready yet: its files come first."""
    placed = Checkpoint(
        id=uuid.uuid4().hex,
        run_id=run.id,
        organization_id=run.organization_id,
        request_id=request_id,
        kind=kind,
        name=name,
    )
    sql.add(placed)
    return placed
