"""Whom a sign-in provider knows a user as: accounts are found by that, not by an address."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_25_identities"
down_revision = "2026_11_25_pages"


def upgrade() -> None:
    op.create_table(
        "identities",
        sa.Column("issuer", sa.String(400), primary_key=True),
        sa.Column("subject", sa.String(255), primary_key=True),
        sa.Column("user_id", sa.String(40), sa.ForeignKey("users.id"), nullable=False, index=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("identities")
