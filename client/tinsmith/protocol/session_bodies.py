"""JSON bodies of the calls that look sessions up (wire: 8.8)."""

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta

from tinsmith.protocol.bodies import Answer, Body

Reason = Literal["success", "errored", "interrupted"]
Aware = Annotated[datetime, Meta(tz=True)]


class Sessions(Answer, kw_only=True, frozen=True):
    sessions: list[str]


class SessionInfo(Answer, kw_only=True, frozen=True):
    training_run_ids: list[str]
    sampler_ids: list[str]
    user_metadata: dict[str, str] | None = None
    display_name: str | None = None


class AssignProject(Body, kw_only=True, frozen=True):
    project_id: str


# What a search asks for


class OwnSessions(Body, kw_only=True, frozen=True, tag_field="type", tag="own"):
    pass


class AccessibleSessions(Body, kw_only=True, frozen=True, tag_field="type", tag="accessible"):
    pass


class SessionsOf(Body, kw_only=True, frozen=True, tag_field="type", tag="user"):
    owner_urns: Annotated[list[str], Meta(min_length=1, max_length=10)]


class AreActive(Body, kw_only=True, frozen=True, tag_field="type", tag="active"):
    pass


class AreCancelled(Body, kw_only=True, frozen=True, tag_field="type", tag="cancelled"):
    pass


class AreFailed(Body, kw_only=True, frozen=True, tag_field="type", tag="failed"):
    pass


class AreFinished(Body, kw_only=True, frozen=True, tag_field="type", tag="client_finished"):
    reasons: Annotated[list[Reason], Meta(min_length=1)] | None = None


StatusQuery = AreActive | AreCancelled | AreFailed | AreFinished


class SearchCursor(Answer, kw_only=True, frozen=True):
    last_created_at: Aware
    last_session_id: str


class SearchSessions(Body, kw_only=True, frozen=True):
    session_id: str | None = None
    project_ids: list[str] | None = None
    user_metadata: dict[str, str] | None = None
    display_name: Annotated[str, Meta(min_length=1)] | None = None
    owner: OwnSessions | AccessibleSessions | SessionsOf = OwnSessions()
    statuses: Annotated[list[StatusQuery], Meta(min_length=1)] | None = None
    limit: Annotated[int, Meta(ge=1, le=200)] = 50
    cursor: SearchCursor | None = None


# What it finds


class FinishedBecause(Answer, kw_only=True, frozen=True):
    type: str


class SessionActive(Answer, kw_only=True, frozen=True, tag_field="type", tag="active"):
    pass


class SessionFinished(Answer, kw_only=True, frozen=True, tag_field="type", tag="client_finished"):
    reason: FinishedBecause
    detail: str | None = None


class SessionSummary(Answer, kw_only=True, frozen=True):
    session_id: str
    created_at: datetime
    owner: str
    project_id: str
    checkpoints_count: int
    checkpoint_storage_bytes: int
    status: SessionActive | SessionFinished | None
    display_name: str | None
    user_metadata: dict[str, str] | None


class FoundSessions(Answer, kw_only=True, frozen=True):
    sessions: list[SessionSummary]
    next_cursor: SearchCursor | None
