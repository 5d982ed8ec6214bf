"""JSON bodies of the reports: audit log, usage and storage (wire: 9.1, 9.2)."""

from datetime import datetime
from typing import Any

from tinsmith.protocol.bodies import Answer


class AuditLogEntry(Answer, kw_only=True, frozen=True):
    timestamp: datetime
    event: str
    event_details: dict[str, Any]
    model_id: str | None = None
    tinker_path: str | None = None
    purpose: str | None = None


class AuditLog(Answer, kw_only=True, frozen=True):
    entries: list[AuditLogEntry]


class UsageEvent(Answer, kw_only=True, frozen=True):
    """`event_info` says by its `type` what was used and how much."""

    bucket_start: datetime
    bucket_end: datetime
    event_info: dict[str, Any]
    base_model: str | None = None
    user_id: str | None = None
    user_name: str | None = None
    session_id: str | None = None
    project_id: str | None = None
    estimated_cost_usd: float | None = None
    effective_rate_usd_per_million_tokens: float | None = None
    effective_rate_usd_per_gigabyte_month: float | None = None


class UsageSession(Answer, kw_only=True, frozen=True):
    user_metadata: dict[str, str] | None


class UsageReport(Answer, kw_only=True, frozen=True):
    data: list[UsageEvent]
    sessions: dict[str, UsageSession]
    cost_data_through: datetime | None = None


class StoredNow(Answer, kw_only=True, frozen=True):
    checkpoint_count: int
    size_bytes: int
    size_gigabytes: float
    project_id: str | None = None
    org_user_urn: str | None = None
    user_email: str | None = None
    user_name: str | None = None
    estimated_monthly_cost_usd: float | None = None


class StorageReport(Answer, kw_only=True, frozen=True):
    data: list[StoredNow]
    effective_rate_usd_per_gigabyte_month: float | None
