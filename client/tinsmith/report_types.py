"""What the reports and `whoami` answer, under the official SDK's names."""

import msgspec

from tinsmith.protocol import report_bodies as bodies


class TrainingBillingEvent(msgspec.Struct, frozen=True, tag="training"):
    token_count: int


class SamplingPrefillBillingEvent(msgspec.Struct, frozen=True, tag="sampling_prefill"):
    """`cached`: the tokens were found in the prefix cache."""

    cached: bool
    token_count: int


class SamplingSampleBillingEvent(msgspec.Struct, frozen=True, tag="sampling_sample"):
    token_count: int


class CheckpointBillingEvent(msgspec.Struct, frozen=True, tag="checkpoint"):
    count: int


class StorageBillingEvent(msgspec.Struct, frozen=True, tag="storage"):
    gigabyte_hours: float
    free: bool = False


BillingEventInfo = (
    TrainingBillingEvent
    | SamplingPrefillBillingEvent
    | SamplingSampleBillingEvent
    | CheckpointBillingEvent
    | StorageBillingEvent
)


class BillingUsageEvent(bodies.UsageEvent, kw_only=True, frozen=True):
    event_info: BillingEventInfo  # type: ignore[assignment]  # the service writes any dict


class BillingUsageResponse(bodies.UsageReport, kw_only=True, frozen=True):
    data: list[BillingUsageEvent]  # type: ignore[assignment]


class WhoamiResponse(msgspec.Struct, kw_only=True, frozen=True):
    user_urn: str
    org_urn: str
    email: str | None = None
