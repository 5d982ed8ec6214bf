"""Which sessions are heard of: their clients beat every ten seconds."""

from collections.abc import Sequence

from tinsmith.protocol import keys

from tinsmith_server.bus import HEARTBEAT_TTL_SECONDS, Bus

_SILENT_SECONDS = 300


async def beating(bus: Bus, session_ids: Sequence[str]) -> set[str]:
    """Those that beat in the last five minutes, by how long their beats have left to live."""
    if not session_ids:
        return set()
    async with bus.redis.pipeline(transaction=False) as pipeline:
        for session_id in session_ids:
            pipeline.ttl(keys.heartbeat(session_id))
        left = await pipeline.execute()
    least = HEARTBEAT_TTL_SECONDS - _SILENT_SECONDS
    return {name for name, ttl in zip(session_ids, left, strict=True) if ttl >= least}
