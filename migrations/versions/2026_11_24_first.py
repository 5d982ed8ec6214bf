"""The first schema: organizations, keys, sessions, runs, checkpoints, samplers."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_24_first"
down_revision = None

_TIME = sa.DateTime(timezone=True)


def _owner() -> sa.Column[str]:
    return sa.Column(
        "organization_id",
        sa.String(40),
        sa.ForeignKey("organizations.id"),
        nullable=False,
        index=True,
    )


def _parent(column: str, target: str, length: int) -> sa.Column[str]:
    return sa.Column(column, sa.String(length), sa.ForeignKey(target), nullable=False, index=True)


def upgrade() -> None:
    op.create_table(
        "organizations",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("name", sa.String(200), nullable=False, unique=True),
        sa.Column("created_at", _TIME, nullable=False),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(40), primary_key=True),
        _owner(),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("secret_hash", sa.String(64), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("revoked_at", _TIME),
        sa.Column("last_used_at", _TIME),
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(64), primary_key=True),
        _owner(),
        sa.Column("project_id", sa.String(100), nullable=False),
        sa.Column("display_name", sa.String(200)),
        sa.Column("sdk_version", sa.String(40), nullable=False),
        sa.Column("user_metadata", sa.JSON),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("finished_at", _TIME),
        sa.Column("finish_reason", sa.String(40)),
    )
    op.create_table(
        "training_runs",
        sa.Column("id", sa.String(100), primary_key=True),
        _parent("session_id", "sessions.id", 64),
        _owner(),
        sa.Column("base_model", sa.String(300), nullable=False),
        sa.Column("lora_rank", sa.Integer, nullable=False),
        sa.Column("train_attn", sa.Boolean, nullable=False),
        sa.Column("train_mlp", sa.Boolean, nullable=False),
        sa.Column("train_unembed", sa.Boolean, nullable=False),
        sa.Column("user_metadata", sa.JSON),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("last_request_at", _TIME, nullable=False),
    )
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.String(40), primary_key=True),
        _parent("run_id", "training_runs.id", 100),
        _owner(),
        sa.Column("request_id", sa.String(140), nullable=False, unique=True),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("name", sa.String(128)),
        sa.Column("ready", sa.Boolean, nullable=False),
        sa.Column("size_bytes", sa.BigInteger),
        sa.Column("user_metadata", sa.JSON),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME),
    )
    op.create_table(
        "sampling_sessions",
        sa.Column("id", sa.String(100), primary_key=True),
        _parent("session_id", "sessions.id", 64),
        _owner(),
        sa.Column("base_model", sa.String(300), nullable=False),
        sa.Column("checkpoint_id", sa.String(40), index=True),
        sa.Column("model_path", sa.String(400)),
        sa.Column("request_id", sa.String(140), unique=True),
        sa.Column("created_at", _TIME, nullable=False),
    )


def downgrade() -> None:
    for table in (
        "sampling_sessions",
        "checkpoints",
        "training_runs",
        "sessions",
        "api_keys",
        "organizations",
    ):
        op.drop_table(table)
