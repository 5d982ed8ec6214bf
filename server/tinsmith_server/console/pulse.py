"""What an organization's last minutes were like: DONE counts them in Redis, ten seconds at a time."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tinsmith.protocol import keys

from tinsmith_server.bus import Bus

BUCKET_SECONDS = 10
TRAINING, SAMPLING = "t", "s"


@dataclass(frozen=True)
class Bucket:
    """Ten seconds: requests, failed, tokens and latencies of each kind."""

    begin: int
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def moment(self) -> datetime:
        return datetime.fromtimestamp(self.begin, UTC)

    def count(self, kind: str, what: str) -> int:
        return self.counts.get(f"{kind}:{what}", 0)


async def buckets(bus: Bus, organization_id: str, seconds: int) -> list[Bucket]:
    """The last whole ones and the one that is filling, oldest first."""
    last = int(time.time()) // BUCKET_SECONDS * BUCKET_SECONDS
    begins = range(last - seconds, last + 1, BUCKET_SECONDS)
    async with bus.redis.pipeline(transaction=False) as pipe:
        for begin in begins:
            pipe.hgetall(keys.live(organization_id, begin))
        found = await pipe.execute()
    return [
        Bucket(begin, {name.decode(): int(value) for name, value in counts.items()})
        for begin, counts in zip(begins, found, strict=True)
    ]


def total(some: Sequence[Bucket], kind: str, what: str) -> int:
    return sum(one.count(kind, what) for one in some)


def rate(some: Sequence[Bucket], kind: str, what: str) -> float:
    """Per second over the last whole minute; the bucket that is filling would pull it down."""
    minute = some[-7:-1]
    return total(minute, kind, what) / (len(minute) * BUCKET_SECONDS)


def percentile(some: Sequence[Bucket], kind: str, share: float) -> float | None:
    """Milliseconds from submit to result. A class reaches from 2^(k/2) to 2^((k+1)/2) ms (finished.lua);
    within one, requests are taken to lie evenly on a logarithmic scale."""
    classes: dict[int, int] = {}
    for one in some:
        for name, number in one.counts.items():
            what, _, k = name.partition(":")
            if what == kind and k.isdigit():
                classes[int(k)] = classes.get(int(k), 0) + number
    left = share * sum(classes.values())
    for place, held in sorted(classes.items()):
        if left <= held:
            return float(2 ** ((place + left / held) / 2))
        left -= held
    return None
