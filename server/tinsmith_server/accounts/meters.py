"""How much of every limit that was agreed is in use just now. For pages.

Months and what is stored are reckoned in SQL (allowances.py); what runs at once, and rates, as the
queue counts them (scripts/admit.lua).
"""

from collections.abc import Sequence
from typing import Any

from tinsmith.protocol import keys

from tinsmith_server.accounts.allowances import Standing
from tinsmith_server.accounts.limits import LimitValues, Subject, all_limits
from tinsmith_server.service import Service


async def meters(service: Service, organization_id: str) -> list[Standing]:
    """One of every limit that was agreed."""
    async with service.db.begin() as sql:
        agreed = await all_limits(sql, organization_id)
    found = await service.allowances.standings(organization_id)
    for (subject, subject_id), values in agreed.items():
        scope = _scope(subject, subject_id, organization_id)
        found += await _of_queue(service.bus.redis, scope, subject, subject_id, values)
    return found


async def _of_queue(
    redis: Any, scope: str, subject: Subject, subject_id: str, values: LimitValues
) -> list[Standing]:
    seconds, microseconds = await redis.time()
    async with redis.pipeline(transaction=False) as pipe:
        pipe.scard(keys.live_runs(scope))
        pipe.hget(keys.load(scope), "samples")
        pipe.hmget(keys.rate(scope), "per_second", "per_second_at")
        pipe.hmget(keys.rate(scope), "per_minute", "per_minute_at")
        runs, samples, second, minute = await pipe.execute()
    moment = seconds * 1_000_000 + microseconds
    per_second, per_minute = values.requests_per_second, values.tokens_per_minute
    used = {
        "live_runs": float(runs),
        "concurrent_samples": float(samples or 0),
        "requests_per_second": _taken(second, per_second or 0, max(per_second or 0, 1), moment),
        "tokens_per_minute": _taken(minute, (per_minute or 0) / 60, per_minute or 0, moment),
    }
    return [
        Standing(subject, subject_id, name, amount, allowed)
        for name, amount in used.items()
        if (allowed := getattr(values, name)) is not None
    ]


def _taken(bucket: Sequence[bytes | None], per_second: float, most: float, moment: int) -> float:
    """What is missing in a bucket that fills at so much a second; a large request may overdraw it."""
    level, at = bucket
    if level is None or at is None:
        return 0.0
    filled = float(level) + (moment - int(at)) * per_second / 1_000_000
    return most - min(most, filled)


def _scope(subject: Subject, subject_id: str, organization_id: str) -> str:
    if subject is Subject.PROJECT:
        return keys.project_scope(organization_id, subject_id)
    if subject is Subject.KEY:
        return keys.key_scope(subject_id)
    return keys.organization_scope(organization_id)
