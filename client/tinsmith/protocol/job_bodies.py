"""What is told of work that goes on in the background."""

from typing import Any, Literal

from tinsmith.protocol.bodies import Answer

JobState = Literal["queued", "running", "done", "failed"]


class BackgroundJob(Answer, kw_only=True, frozen=True):
    """`progress` goes from 0 to 1; `result` is there when it is done, `error` when it failed."""

    job_id: str
    kind: str
    state: JobState
    progress: float = 0.0
    note: str | None = None
    result: dict[str, Any] | None = None
    error: str | None = None
