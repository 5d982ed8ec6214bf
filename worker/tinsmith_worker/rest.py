"""A worker that was drained: it holds no run and no sample, and is there to be taken back or stopped.

Taken back, the process begins anew under another name: under the old one it might be taken for the home
of runs that others have by now.
"""

import time
from collections.abc import Callable

import structlog
from redis.exceptions import RedisError

from tinsmith_worker.queue import Queue

_log = structlog.get_logger()
_LOOK_SECONDS = 0.5


def rest(queue: Queue, is_stopped: Callable[[], bool]) -> bool:
    """Whether it is taken back; False: told to stop."""
    _log.info("worker_drained", worker=queue.worker)
    while not is_stopped():
        try:
            if not queue.rests():
                return True
        except RedisError as error:
            _log.warning("redis_unreachable", error=type(error).__name__)
        time.sleep(_LOOK_SECONDS)
    try:
        queue.rest_is_over()
    except RedisError as error:  # it is forgotten in a while
        _log.warning("left_without_goodbye", error=type(error).__name__)
    return False
