"""The background queue as an operator sees it: how long it is, what failed, and failed jobs again."""

from dataclasses import dataclass
from datetime import UTC, datetime

from redis import Redis
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.job import Job
from rq.serializers import JSONSerializer
from tinsmith.protocol.errors import NotFound

_SHOWN = 50


@dataclass(frozen=True)
class FailedJob:
    id: str
    description: str
    ended_at: datetime | None
    reason: str
    """The last line of its traceback; the log of the background process has the rest."""


@dataclass(frozen=True)
class BackgroundOverview:
    num_waiting: int
    num_running: int
    failed: list[FailedJob]
    """Newest first."""


def overview(queue: Queue, redis: Redis) -> BackgroundOverview:
    names = queue.failed_job_registry.get_job_ids(0, _SHOWN - 1, desc=True)
    jobs = Job.fetch_many(names, connection=redis, serializer=JSONSerializer)
    failed = [_failed(job) for job in jobs if job is not None]
    return BackgroundOverview(queue.count, queue.started_job_registry.count, failed)


def again(queue: Queue, job_id: str) -> None:
    try:
        queue.failed_job_registry.requeue(job_id)
    except (NoSuchJobError, ValueError):
        raise NotFound(f"There is no failed job {job_id[:80]!r}.") from None


def _failed(job: Job) -> FailedJob:
    result = job.latest_result()
    lines = (result.exc_string or "").strip().splitlines() if result else []
    ended = job.ended_at.replace(tzinfo=UTC) if job.ended_at else None
    return FailedJob(job.id, job.description or "", ended, lines[-1][:300] if lines else "")
