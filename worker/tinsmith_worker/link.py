"""The worker's connection to Redis: its scripts, and what is done when it does not answer.

Synchronous: one thread, one connection.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import structlog
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisAway
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisSilent
from redis.retry import Retry
from tinsmith.protocol.scripts import script

_log = structlog.get_logger()
_PATIENCE_SECONDS = 0.5
_SCRIPTS = Path(__file__).parent / "scripts"
_PARTS: Mapping[str, tuple[str, ...]] = {
    "take": ("take",),
    "done": ("release", "finished", "done"),
    "snap": ("snap",),
    "adopt": ("adopt",),
    "bury": ("bury",),
    "retake": ("retake",),
    "close_gap": ("release", "close_gap"),
    "take_samples": ("take_samples",),
    "rescue_samples": ("rescue_samples",),
    "sample_done": ("release", "finished", "sample_done"),
    "point_slot": ("point_slot",),
}
_FULL = ("MISCONF", "OOM")
"""How Redis begins to say that its disk or its memory is full."""
T = TypeVar("T")


class Link:
    def __init__(self, redis_url: str) -> None:
        # Its stubs mix the sync and async answers. It may not try again by itself: whether an answer
        # was lost must be known here, for what a list has given is gone from it.
        self.redis: Any = Redis.from_url(redis_url, retry=Retry(NoBackoff(), 0))
        self.patient = True
        """Whether a result waits for a Redis that is away; false once the worker is to stop."""
        self._scripts: Mapping[str, Any] = {
            name: self.redis.register_script(script(_SCRIPTS, *parts))
            for name, parts in _PARTS.items()
        }

    def run(self, script: str, *args: object) -> Any:
        return self._scripts[script](keys=[], args=list(args))

    def tell(self, script: str, *args: object) -> Any:
        """A result is computed once, and telling it again changes nothing."""
        return self.patiently(lambda: self.run(script, *args))

    def patiently(self, ask: Callable[[], T]) -> T:
        """Until Redis answers; for what may be asked twice, in the middle of work."""
        while True:
            try:
                return ask()
            except RedisError as error:
                if not (self.patient and _will_pass(error)):
                    raise
                _log.warning("work_waits_for_redis", error=type(error).__name__)
                time.sleep(_PATIENCE_SECONDS)

    def members(self, key: str) -> list[str]:
        return sorted(name.decode() for name in self.redis.smembers(key))


def _will_pass(error: RedisError) -> bool:
    """Away, starting, or full: a matter of waiting."""
    return isinstance(error, RedisAway | RedisSilent) or str(error).startswith(_FULL)
