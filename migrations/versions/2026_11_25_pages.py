"""What the pages of many sessions, runs and checkpoints are found by: an organization's, newest first."""

from alembic import op

revision = "2026_11_25_pages"
down_revision = "2026_11_25_accounts"

_INDEXES = (
    ("sessions", ["organization_id", "created_at"]),
    ("sessions", ["key_id"]),
    ("training_runs", ["organization_id", "created_at"]),
    ("training_runs", ["organization_id", "last_request_at"]),
    ("checkpoints", ["organization_id", "created_at"]),
)


_REPLACED = ("sessions", "training_runs", "checkpoints")
"""Their indexes of the organization alone: SQLite would choose them and sort everything that it finds."""


def _name(table: str, columns: list[str]) -> str:
    return f"ix_{table}_{'_'.join(columns)}"


def upgrade() -> None:
    for table, columns in _INDEXES:
        op.create_index(_name(table, columns), table, columns)
    for table in _REPLACED:
        op.drop_index(_name(table, ["organization_id"]), table)


def downgrade() -> None:
    for table in _REPLACED:
        op.create_index(_name(table, ["organization_id"]), table, ["organization_id"])
    for table, columns in reversed(_INDEXES):
        op.drop_index(_name(table, columns), table)
