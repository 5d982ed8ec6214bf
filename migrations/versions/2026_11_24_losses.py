"""Custom losses of a session."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_24_losses"
down_revision = "2026_11_24_wire"


def upgrade() -> None:
    op.create_table(
        "custom_losses",
        sa.Column("id", sa.String(140), primary_key=True),
        sa.Column("session_id", sa.String(64), sa.ForeignKey("sessions.id"), nullable=False),
        sa.Column(
            "organization_id", sa.String(40), sa.ForeignKey("organizations.id"), nullable=False
        ),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("graph", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_custom_losses_session_id", "custom_losses", ["session_id"])


def downgrade() -> None:
    op.drop_table("custom_losses")
