"""Tables of people: who they are, where they belong, how they are let in, what they may use."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from tinsmith_server.db import Instant, Table, now


class User(Table):
    """A person. `operator` is for the whole service; every other right comes from a membership."""

    __tablename__ = "users"
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    email: Mapped[str] = mapped_column(String(254), unique=True)
    name: Mapped[str] = mapped_column(String(200))
    password_hash: Mapped[str] = mapped_column(String(200))
    operator: Mapped[bool] = mapped_column(default=False)
    totp_nonce: Mapped[str | None] = mapped_column(String(40))
    """What the second factor is derived from, with the pepper: no secret stands in the database."""
    totp_last_step: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    created_at: Mapped[datetime] = mapped_column(Instant, default=now)


class Identity(Table):
    """Whom a provider knows a user as. Its subject never changes there; an e-mail address may."""

    __tablename__ = "identities"
    issuer: Mapped[str] = mapped_column(String(400), primary_key=True)
    subject: Mapped[str] = mapped_column(String(255), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"), index=True)
    created_at: Mapped[datetime] = mapped_column(Instant, default=now)


class Member(Table):
    __tablename__ = "members"
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"), primary_key=True, index=True)
    role: Mapped[str] = mapped_column(String(20))
    created_at: Mapped[datetime] = mapped_column(Instant, default=now)


class ConsoleSession(Table):
    """A browser that is signed in. Its id is the hash of what the cookie holds."""

    __tablename__ = "console_sessions"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"), index=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    created_at: Mapped[datetime] = mapped_column(Instant, default=now)
    expires_at: Mapped[datetime] = mapped_column(Instant)


class Invitation(Table):
    """One use. Its id is the hash of what the link holds."""

    __tablename__ = "invitations"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), index=True)
    role: Mapped[str] = mapped_column(String(20))
    email: Mapped[str | None] = mapped_column(String(254))
    invited_by: Mapped[str | None] = mapped_column(String(40))
    created_at: Mapped[datetime] = mapped_column(Instant, default=now)
    expires_at: Mapped[datetime] = mapped_column(Instant)
    used_at: Mapped[datetime | None] = mapped_column(Instant)


class Project(Table):
    """A name that sessions share. One may also be used without standing here."""

    __tablename__ = "projects"
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    id: Mapped[str] = mapped_column(String(100), primary_key=True)
    note: Mapped[str] = mapped_column(String(500), default="", server_default="")
    created_at: Mapped[datetime] = mapped_column(Instant, default=now)


class LimitRow(Table):
    """What an organization, a project of it or a key of it may use. Null is no limit of its own."""

    __tablename__ = "limits"
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    subject: Mapped[str] = mapped_column(String(20), primary_key=True)
    subject_id: Mapped[str] = mapped_column(String(100), primary_key=True)
    requests_per_second: Mapped[float | None]
    tokens_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    live_runs: Mapped[int | None]
    concurrent_samples: Mapped[int | None]
    stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    monthly_tokens: Mapped[int | None] = mapped_column(BigInteger)
    monthly_budget_usd: Mapped[float | None]
