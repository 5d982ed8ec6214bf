"""The optimizer of a run, and samplers that follow a run."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_24_optimizers"
down_revision = "2026_11_24_losses"


def upgrade() -> None:
    with op.batch_alter_table("training_runs") as runs:
        runs.add_column(
            sa.Column("optimizer", sa.String(40), nullable=False, server_default="adamw")
        )
    with op.batch_alter_table("sampling_sessions") as samplers:
        samplers.add_column(sa.Column("slot_run_id", sa.String(100)))


def downgrade() -> None:
    with op.batch_alter_table("sampling_sessions") as samplers:
        samplers.drop_column("slot_run_id")
    with op.batch_alter_table("training_runs") as runs:
        runs.drop_column("optimizer")
