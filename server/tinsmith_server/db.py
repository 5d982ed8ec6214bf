"""Tables and transactions. SQL holds what someone would be angry to lose or wants to query.

Ownership is by organization and stands in the query: someone else's row is as absent as none.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    TypeDecorator,
    event,
)
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Instant(TypeDecorator[datetime]):
    """An aware UTC time; SQLite forgets the zone, this puts it back."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value and value.tzinfo is None else value


def now() -> datetime:
    return datetime.now(UTC)


class Table(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Organization(Table):
    __tablename__ = "organizations"
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    created_at: Mapped[datetime] = mapped_column(Instant, default=now)


class ApiKey(Table):
    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), index=True)
    name: Mapped[str] = mapped_column(String(200))
    secret_hash: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(Instant, default=now)
    revoked_at: Mapped[datetime | None] = mapped_column(Instant)
    last_used_at: Mapped[datetime | None] = mapped_column(Instant)
    scopes: Mapped[str] = mapped_column(String(200), default="all", server_default="all")
    project_id: Mapped[str | None] = mapped_column(String(100))
    """The only project that it may touch; null for every one of its organization."""
    note: Mapped[str] = mapped_column(String(500), default="", server_default="")
    expires_at: Mapped[datetime | None] = mapped_column(Instant)
    created_by: Mapped[str | None] = mapped_column(String(40))


class Session(Table):
    __tablename__ = "sessions"
    __table_args__ = (
        Index("ix_sessions_organization_id_created_at", "organization_id", "created_at"),
    )
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    project_id: Mapped[str] = mapped_column(String(100))
    display_name: Mapped[str | None] = mapped_column(String(200))
    sdk_version: Mapped[str] = mapped_column(String(40))
    user_metadata: Mapped[dict[str, str] | None] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(Instant, default=now)
    finished_at: Mapped[datetime | None] = mapped_column(Instant)
    finish_reason: Mapped[str | None] = mapped_column(String(40))
    finish_detail: Mapped[str | None] = mapped_column(String(500))
    tags: Mapped[list[str] | None] = mapped_column(JSON)
    key_id: Mapped[str | None] = mapped_column(String(40), index=True)


class TrainingRun(Table):
    __tablename__ = "training_runs"
    __table_args__ = (
        Index("ix_training_runs_organization_id_created_at", "organization_id", "created_at"),
        Index(
            "ix_training_runs_organization_id_last_request_at", "organization_id", "last_request_at"
        ),
    )
    id: Mapped[str] = mapped_column(String(100), primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.id"), index=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    base_model: Mapped[str] = mapped_column(String(300))
    lora_rank: Mapped[int]
    optimizer: Mapped[str] = mapped_column(String(40), default="adamw", server_default="adamw")
    train_attn: Mapped[bool]
    train_mlp: Mapped[bool]
    train_unembed: Mapped[bool]
    user_metadata: Mapped[dict[str, str] | None] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(Instant, default=now)
    last_request_at: Mapped[datetime] = mapped_column(Instant, default=now)


class Checkpoint(Table):
    """`name` is null for the weights behind an unnamed sampling session; those are never listed.

    A deleted one keeps its row, so that what was stored, and for how long, can still be told.
    """

    __tablename__ = "checkpoints"
    __table_args__ = (
        Index("ix_checkpoints_organization_id_created_at", "organization_id", "created_at"),
    )
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("training_runs.id"), index=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    request_id: Mapped[str] = mapped_column(String(140), unique=True)
    kind: Mapped[str] = mapped_column(String(20))
    name: Mapped[str | None] = mapped_column(String(128))
    ready: Mapped[bool] = mapped_column(default=False)
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    public: Mapped[bool] = mapped_column(default=False)
    user_metadata: Mapped[dict[str, str] | None] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(Instant, default=now)
    expires_at: Mapped[datetime | None] = mapped_column(Instant)
    deleted_at: Mapped[datetime | None] = mapped_column(Instant)


class SamplingSession(Table):
    """A sampler: a base model, and the checkpoint on it if any.

    An inflight one follows the run of `slot_run_id`, and its checkpoint is the one that it began with.
    """

    __tablename__ = "sampling_sessions"
    id: Mapped[str] = mapped_column(String(100), primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.id"), index=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), index=True)
    base_model: Mapped[str] = mapped_column(String(300))
    checkpoint_id: Mapped[str | None] = mapped_column(String(40), index=True)
    model_path: Mapped[str | None] = mapped_column(String(400))
    request_id: Mapped[str | None] = mapped_column(String(140), unique=True)
    slot_run_id: Mapped[str | None] = mapped_column(String(100))
    created_at: Mapped[datetime] = mapped_column(Instant, default=now)


class CustomLoss(Table):
    """A traced loss, as the worker reads it. Only runs of its session may use it."""

    __tablename__ = "custom_losses"
    id: Mapped[str] = mapped_column(String(140), primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.id"), index=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    name: Mapped[str] = mapped_column(String(200))
    graph: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(Instant, default=now)


class AuditEntry(Table):
    """Who changed what. Written in the transaction of the change, never altered."""

    __tablename__ = "audit_entries"
    __table_args__ = (Index("ix_audit_entries_organization_id_at", "organization_id", "at"),)
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    at: Mapped[datetime] = mapped_column(Instant, default=now)
    key_id: Mapped[str | None] = mapped_column(String(40))
    user_id: Mapped[str | None] = mapped_column(String(40))
    resource: Mapped[str] = mapped_column(String(40))
    action: Mapped[str] = mapped_column(String(60))
    details: Mapped[dict[str, Any]] = mapped_column(JSON)


class Usage(Table):
    """Tokens of one kind that a session's requests took in one hour."""

    __tablename__ = "usage"
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    hour: Mapped[datetime] = mapped_column(Instant, primary_key=True)
    session_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    base_model: Mapped[str] = mapped_column(String(300), primary_key=True)
    kind: Mapped[str] = mapped_column(String(40), primary_key=True)
    tokens: Mapped[int] = mapped_column(BigInteger)


class UsageBatch(Table):
    """A batch of counts that is in `usage` already: whoever brings it again is told so by its key."""

    __tablename__ = "usage_batches"
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    counted_at: Mapped[datetime] = mapped_column(Instant, default=now)


class RunStep(Table):
    """One optimizer step of a run: what its passes came to, and what the optimizer said."""

    __tablename__ = "run_steps"
    run_id: Mapped[str] = mapped_column(String(100), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(Instant)
    loss: Mapped[float | None] = mapped_column(Double)
    drift: Mapped[float | None] = mapped_column(Double)
    tokens: Mapped[int] = mapped_column(BigInteger)
    grad_norm: Mapped[float] = mapped_column(Double)
    learning_rate: Mapped[float] = mapped_column(Double)


class RunAdoption(Table):
    """A worker took the run over from one that was gone."""

    __tablename__ = "run_adoptions"
    run_id: Mapped[str] = mapped_column(String(100), primary_key=True)
    epoch: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(Instant)
    worker: Mapped[str] = mapped_column(String(100))


class Database:
    def __init__(self, url: str) -> None:
        self._engine = create_async_engine(url, pool_pre_ping=True)  # a database may restart
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine.sync_engine, "connect", _configure_sqlite)
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncSession]:
        """One transaction: committed at the end, rolled back by an exception."""
        async with self._sessions.begin() as sql:
            yield sql

    async def close(self) -> None:
        await self._engine.dispose()


def _configure_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=NORMAL",
        "busy_timeout=10000",
        "foreign_keys=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
