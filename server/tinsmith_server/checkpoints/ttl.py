"""How long a checkpoint may be told to live: an hour to ten years, or for ever."""

from datetime import datetime, timedelta

from tinsmith.protocol.errors import BadRequest

from tinsmith_server.db import now

_LEAST, _MOST = 3600, 10 * 365 * 24 * 3600


def expiry(ttl_seconds: int | None) -> datetime | None:
    """From now; None is never."""
    if ttl_seconds is None:
        return None
    if not _LEAST <= ttl_seconds <= _MOST:
        raise BadRequest(f"ttl_seconds: {ttl_seconds} is not from {_LEAST} to {_MOST}.")
    return now() + timedelta(seconds=ttl_seconds)
