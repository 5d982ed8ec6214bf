"""Putting jobs on the queue, and asking what became of them. It has never heard of what they do.

RQ speaks to Redis synchronously: an API process asks from a thread.
"""

import asyncio
import re
import uuid
from typing import Any

import structlog
from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, Retry
from rq.exceptions import NoSuchJobError
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer
from tinsmith.protocol import keys
from tinsmith.protocol.errors import NotFound, TooMany
from tinsmith.protocol.job_bodies import BackgroundJob, JobState

from tinsmith_server.accounts.caller import Caller
from tinsmith_server.background.overview import BackgroundOverview, again, overview

QUEUE = "tinsmith"
_log = structlog.get_logger()
KEPT_SECONDS = 24 * 3600
"""How long it can be told what became of a job, and how long the files that it made stay."""
_LONGEST_SECONDS = 6 * 3600
_DEATHS = 2
_JOB_ID = re.compile(r"[A-Za-z0-9_\-]{1,80}")
_TIDYING = "tidying"
_TIDY_SECONDS = 60
_LIVE = 8
"""Of an organization at a time: they share one queue, and what they make takes room."""


class BackgroundJobs:
    def __init__(self, redis_url: str) -> None:
        self._redis = Redis.from_url(redis_url)
        self._queue = Queue(QUEUE, connection=self._redis, serializer=JSONSerializer)

    async def enqueue(
        self,
        function: str,
        user: Caller,
        kind: str,
        *,
        job_id: str | None = None,
        **of: Any,
    ) -> BackgroundJob:
        """A job that its organization may look up; of a key of one project, only keys that reach it.

        `function` is a dotted name; it is called with `job_id` and what else is given here, and answers
        {"result": {...}}, or {"error": a sentence for the user}.
        """
        of["job_id"] = job_id = job_id or uuid.uuid4().hex
        return await asyncio.to_thread(self._enqueue, function, user, kind, job_id, of)

    def _enqueue(
        self, function: str, user: Caller, kind: str, job_id: str, of: dict[str, Any]
    ) -> BackgroundJob:
        self._check_live(user.organization_id)
        job = self._queue.enqueue_call(
            function,
            kwargs=of,
            timeout=_LONGEST_SECONDS,
            result_ttl=KEPT_SECONDS,
            failure_ttl=KEPT_SECONDS,
            job_id=job_id,
            description=f"{kind} {job_id}",  # not the arguments: RQ logs it
            meta={
                "organization_id": user.organization_id,
                "project_id": user.project_id,
                "kind": kind,
            },
            retry=Retry(max=_DEATHS),
        )
        self._redis.sadd(keys.jobs(user.organization_id), job_id)
        return _told(job)

    def _check_live(self, organization_id: str) -> None:
        """Two at once may both pass: it bounds, and need not count exactly."""
        mine: Any = self._redis.smembers(keys.jobs(organization_id))
        names = [name.decode() for name in mine]
        found = Job.fetch_many(names, connection=self._redis, serializer=JSONSerializer)
        for name, job in zip(names, found, strict=True):
            if job is None or _told(job).state in ("done", "failed"):
                self._redis.srem(keys.jobs(organization_id), name)
        if self._redis.scard(keys.jobs(organization_id)) >= _LIVE:
            raise TooMany(f"jobs: {_LIVE} of yours have not ended yet; wait for one of them.", 30)

    async def keep_tidying(self) -> None:
        """For as long as the process lives. Of several, one puts the chore on the queue each time."""
        while True:
            try:
                await asyncio.to_thread(self._tidy_if_due)
            except RedisError as error:
                _log.warning("tidying_not_queued", error=type(error).__name__)
            await asyncio.sleep(_TIDY_SECONDS / 4)

    def _tidy_if_due(self) -> None:
        """Once: no more wait than one, however long no background process is there."""
        if not self._redis.set(keys.TIDYING, b"1", nx=True, ex=_TIDY_SECONDS):
            return
        if Job.exists(_TIDYING, connection=self._redis):
            job = Job.fetch(_TIDYING, connection=self._redis, serializer=JSONSerializer)
            if job.get_status() in (JobStatus.QUEUED, JobStatus.STARTED):
                return
        self._queue.enqueue_call(
            "tinsmith_server.background.tidying.tidy",
            kwargs={"job_id": _TIDYING},
            timeout=_LONGEST_SECONDS,
            result_ttl=KEPT_SECONDS,
            failure_ttl=KEPT_SECONDS,
            job_id=_TIDYING,
            description=_TIDYING,
            meta={"organization_id": "", "kind": _TIDYING},
            retry=Retry(max=_DEATHS),
        )

    async def look(self, user: Caller, job_id: str) -> BackgroundJob:
        """Someone else's job is as absent as no job at all."""
        return await asyncio.to_thread(self._look, user, job_id)

    def _look(self, user: Caller, job_id: str) -> BackgroundJob:
        if not _JOB_ID.fullmatch(job_id):
            raise _not_found(job_id)
        try:
            job = Job.fetch(job_id, connection=self._redis, serializer=JSONSerializer)
        except NoSuchJobError:
            raise _not_found(job_id) from None
        meta = job.get_meta(refresh=False)
        project_ids = (None, meta.get("project_id"))
        if (
            meta.get("organization_id") != user.organization_id
            or user.project_id not in project_ids
        ):
            raise _not_found(job_id)
        return _told(job)

    async def overview(self) -> BackgroundOverview:
        return await asyncio.to_thread(overview, self._queue, self._redis)

    async def again(self, job_id: str) -> None:
        """A failed one, of whatever organization: for operators."""
        await asyncio.to_thread(again, self._queue, job_id)

    async def close(self) -> None:
        await asyncio.to_thread(self._redis.close)


def _told(job: Job) -> BackgroundJob:
    status, meta = job.get_status(refresh=False), job.get_meta(refresh=False)
    answer = job.return_value() if status is JobStatus.FINISHED else None
    answer = answer if isinstance(answer, dict) else {}
    error = answer.get("error")
    if status in (JobStatus.FAILED, JobStatus.STOPPED, JobStatus.CANCELED):
        error = f"The job ended with an internal error (reference {job.id[:12]})."
    return BackgroundJob(
        job_id=job.id,
        kind=meta["kind"],
        state=_state(status, error),
        progress=1.0 if answer and not error else meta.get("progress", 0.0),
        note=meta.get("note"),
        result=answer.get("result"),
        error=error,
    )


def _state(status: JobStatus | None, error: str | None) -> JobState:
    if error:
        return "failed"
    if status is JobStatus.FINISHED:
        return "done"
    return "running" if status is JobStatus.STARTED else "queued"


def _not_found(job_id: str) -> NotFound:
    return NotFound(f"job_id: there is no job {job_id[:80]!r}; jobs are kept for a day.")
