"""What an organization has done, used and stored."""

from datetime import date, datetime
from typing import Literal

from tinsmith.futures import APIFuture
from tinsmith.rest_calls import RestCalls
from tinsmith.types import (
    AuditLogResponse,
    BillingUsageResponse,
    CurrentCheckpointStorageUsageResponse,
)

EventType = Literal["all", "checkpoints", "projects", "teams", "organizations"]


class AdminClient(RestCalls):
    """The reports of the caller's organization."""

    def get_audit_log(
        self, event_type: EventType = "all", day: date | None = None
    ) -> APIFuture[AuditLogResponse]:
        """Of one day in UTC, today when none is named."""
        asked = None if day is None else day.isoformat()
        return self._get("/audit", AuditLogResponse, event_type=event_type, day=asked)

    async def get_audit_log_async(
        self, event_type: EventType = "all", day: date | None = None
    ) -> AuditLogResponse:
        return await self.get_audit_log(event_type, day)

    def get_billing_usage(
        self, starting_on: datetime | str, ending_before: datetime | str
    ) -> APIFuture[BillingUsageResponse]:
        """By the hour: full hours of UTC, at most 14 days; costs are null where no price is set."""
        return self._get(
            "/billing/usage/events",
            BillingUsageResponse,
            starting_on=_moment(starting_on),
            ending_before=_moment(ending_before),
        )

    async def get_billing_usage_async(
        self, starting_on: datetime | str, ending_before: datetime | str
    ) -> BillingUsageResponse:
        return await self.get_billing_usage(starting_on, ending_before)

    def get_current_checkpoint_storage_usage(
        self, project_id: str | None = None
    ) -> APIFuture[CurrentCheckpointStorageUsageResponse]:
        """By project and by the key whose session saved them."""
        return self._get(
            "/billing/usage/checkpoints/current",
            CurrentCheckpointStorageUsageResponse,
            project_id=project_id,
        )

    async def get_current_checkpoint_storage_usage_async(
        self, project_id: str | None = None
    ) -> CurrentCheckpointStorageUsageResponse:
        return await self.get_current_checkpoint_storage_usage(project_id)


def _moment(moment: datetime | str) -> str:
    return moment if isinstance(moment, str) else moment.isoformat()
