"""People: users, members, console sessions, invitations, projects, limits; what a key may do."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_25_accounts"
down_revision = "2026_11_25_curves"

_TIME = sa.DateTime(timezone=True)


def _organization(*, primary_key: bool = False) -> sa.Column[str]:
    return sa.Column(
        "organization_id",
        sa.String(40),
        sa.ForeignKey("organizations.id"),
        primary_key=primary_key,
        nullable=False,
    )


def _user(*, primary_key: bool = False) -> sa.Column[str]:
    return sa.Column(
        "user_id",
        sa.String(40),
        sa.ForeignKey("users.id"),
        primary_key=primary_key,
        nullable=False,
        index=True,
    )


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("email", sa.String(254), nullable=False, unique=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("password_hash", sa.String(200), nullable=False),
        sa.Column("operator", sa.Boolean, nullable=False),
        sa.Column("totp_nonce", sa.String(40)),
        sa.Column("totp_last_step", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("created_at", _TIME, nullable=False),
    )
    op.create_table(
        "members",
        _organization(primary_key=True),
        _user(primary_key=True),
        sa.Column("role", sa.String(20), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
    )
    op.create_table(
        "console_sessions",
        sa.Column("id", sa.String(64), primary_key=True),
        _user(),
        _organization(),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
    )
    op.create_table(
        "invitations",
        sa.Column("id", sa.String(64), primary_key=True),
        _organization(),
        sa.Column("role", sa.String(20), nullable=False),
        sa.Column("email", sa.String(254)),
        sa.Column("invited_by", sa.String(40)),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.Column("used_at", _TIME),
    )
    op.create_index("ix_invitations_organization_id", "invitations", ["organization_id"])
    op.create_table(
        "projects",
        _organization(primary_key=True),
        sa.Column("id", sa.String(100), primary_key=True),
        sa.Column("note", sa.String(500), nullable=False, server_default=""),
        sa.Column("created_at", _TIME, nullable=False),
    )
    op.create_table(
        "limits",
        _organization(primary_key=True),
        sa.Column("subject", sa.String(20), primary_key=True),
        sa.Column("subject_id", sa.String(100), primary_key=True),
        sa.Column("requests_per_second", sa.Double),
        sa.Column("tokens_per_minute", sa.BigInteger),
        sa.Column("live_runs", sa.Integer),
        sa.Column("concurrent_samples", sa.Integer),
        sa.Column("stored_bytes", sa.BigInteger),
        sa.Column("monthly_tokens", sa.BigInteger),
        sa.Column("monthly_budget_usd", sa.Double),
    )
    with op.batch_alter_table("api_keys") as table:
        table.add_column(sa.Column("scopes", sa.String(200), nullable=False, server_default="all"))
        table.add_column(sa.Column("project_id", sa.String(100)))
        table.add_column(sa.Column("note", sa.String(500), nullable=False, server_default=""))
        table.add_column(sa.Column("expires_at", _TIME))
        table.add_column(sa.Column("created_by", sa.String(40)))
    with op.batch_alter_table("audit_entries") as table:
        table.add_column(sa.Column("user_id", sa.String(40)))


def downgrade() -> None:
    with op.batch_alter_table("audit_entries") as table:
        table.drop_column("user_id")
    with op.batch_alter_table("api_keys") as table:
        for column in ("created_by", "expires_at", "note", "project_id", "scopes"):
            table.drop_column(column)
    for name in ("limits", "projects", "invitations", "console_sessions", "members", "users"):
        op.drop_table(name)
