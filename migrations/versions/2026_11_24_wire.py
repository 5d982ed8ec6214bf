"""Published and deleted checkpoints, what sessions say of themselves, the audit log, usage."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_24_wire"
down_revision = "2026_11_24_first"

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    with op.batch_alter_table("checkpoints") as table:
        table.add_column(sa.Column("public", sa.Boolean, nullable=False, server_default=sa.false()))
        table.add_column(sa.Column("deleted_at", _TIME))
    with op.batch_alter_table("sessions") as table:
        table.add_column(sa.Column("finish_detail", sa.String(500)))
        table.add_column(sa.Column("tags", sa.JSON))
        table.add_column(sa.Column("key_id", sa.String(40)))
    op.create_table(
        "audit_entries",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column(
            "organization_id", sa.String(40), sa.ForeignKey("organizations.id"), nullable=False
        ),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("key_id", sa.String(40)),
        sa.Column("resource", sa.String(40), nullable=False),
        sa.Column("action", sa.String(60), nullable=False),
        sa.Column("details", sa.JSON, nullable=False),
    )
    op.create_index(
        "ix_audit_entries_organization_id_at", "audit_entries", ["organization_id", "at"]
    )
    op.create_table(
        "usage",
        sa.Column(
            "organization_id", sa.String(40), sa.ForeignKey("organizations.id"), primary_key=True
        ),
        sa.Column("hour", _TIME, primary_key=True),
        sa.Column("session_id", sa.String(64), primary_key=True),
        sa.Column("base_model", sa.String(300), primary_key=True),
        sa.Column("kind", sa.String(40), primary_key=True),
        sa.Column("tokens", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "usage_batches",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("counted_at", _TIME, nullable=False),
    )


def downgrade() -> None:
    """What was only marked as deleted is deleted, or the first schema would list it again."""
    op.execute("DELETE FROM checkpoints WHERE deleted_at IS NOT NULL")
    for table in ("usage_batches", "usage", "audit_entries"):
        op.drop_table(table)
    with op.batch_alter_table("sessions") as sessions:
        for column in ("key_id", "tags", "finish_detail"):
            sessions.drop_column(column)
    with op.batch_alter_table("checkpoints") as checkpoints:
        for column in ("deleted_at", "public"):
            checkpoints.drop_column(column)
