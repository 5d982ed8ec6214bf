"""The background process: RQ's worker, one job at a time, each in a process forked for it."""

import structlog
from redis import Redis
from rq import Queue, Worker, get_current_job
from rq.serializers import JSONSerializer

from tinsmith_server.background.jobs import QUEUE
from tinsmith_server.logs import configure_logs
from tinsmith_server.settings import Settings
from tinsmith_server.storage import check_store

_log = structlog.get_logger()
_LOOK_FOR_DEAD_SECONDS = 30
_HEARTBEAT_SECONDS = 10


def run_background(settings: Settings) -> None:
    """Until asked to stop. What a killed one had begun begins again when the next one finds it."""
    configure_logs()
    check_store(settings)
    redis = Redis.from_url(settings.redis_url)
    queue = Queue(QUEUE, connection=redis, serializer=JSONSerializer)
    worker = Worker(
        [queue],
        connection=redis,
        serializer=JSONSerializer,
        maintenance_interval=_LOOK_FOR_DEAD_SECONDS,
        job_monitoring_interval=_HEARTBEAT_SECONDS,
    )
    worker.work(logging_level="WARNING")


def report(progress: float, note: str | None = None) -> None:
    """From inside a job: how far it is, from 0 to 1, and with what."""
    job = get_current_job()
    if job is None:
        return
    job.meta |= {"progress": round(min(max(progress, 0.0), 1.0), 4), "note": note}
    job.save_meta()  # type: ignore[no-untyped-call]
