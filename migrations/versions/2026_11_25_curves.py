"""Steps and adoptions of runs, and what pages of many runs and checkpoints are found by."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_25_curves"
down_revision = "2026_11_24_optimizers"

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "run_steps",
        sa.Column("run_id", sa.String(100), primary_key=True),
        sa.Column("step", sa.Integer, primary_key=True),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("loss", sa.Double),
        sa.Column("drift", sa.Double),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("grad_norm", sa.Double, nullable=False),
        sa.Column("learning_rate", sa.Double, nullable=False),
    )
    op.create_table(
        "run_adoptions",
        sa.Column("run_id", sa.String(100), primary_key=True),
        sa.Column("epoch", sa.Integer, primary_key=True),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("worker", sa.String(100), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("run_adoptions")
    op.drop_table("run_steps")
