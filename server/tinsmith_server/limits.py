"""What may wait and how fast it may come, by scope: key, run, project, organization, server.

What waits is counted by the queue itself (scripts/admit.lua), in the same step as it takes an op in.
A refusal is 429 with Retry-After: everything told here ends by itself, when other requests are done
or time has passed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Self

from tinsmith.protocol import keys

from tinsmith_server.accounts.caller import Caller


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one scope. None: no limit. Requests that wait and those in work both count as queued."""

    queued_requests: int | None = None
    queued_bytes: int | None = None
    queued_tokens: int | None = None
    concurrent_samples: int | None = None
    """Sampling requests without a result."""
    live_runs: int | None = None
    """Runs whose session is neither finished nor released."""
    requests_per_second: float | None = None
    """Submits, on the average of a second (of 1 / this, where that is longer)."""
    tokens_per_minute: int | None = None
    """Submitted, on the average of a minute; of a sample the prompt and the most it may draw."""


@dataclass(frozen=True)
class Scoped:
    """Limits and the name of the scope that they hold for (protocol/keys.py)."""

    scope: str
    limits: Limits = Limits()

    def row(self) -> list[str | float]:
        """As scripts/admit.lua reads it: 0 says no limit, so a limit of 0 is one of -1."""
        one = self.limits
        values = (
            one.queued_requests,
            one.queued_bytes,
            one.queued_tokens,
            one.concurrent_samples,
            one.live_runs,
            one.requests_per_second,
            one.tokens_per_minute,
        )
        return [self.scope, *(0 if value is None else value or -1 for value in values)]


@dataclass(frozen=True, kw_only=True)
class AccountLimits:
    """Those of a caller's account. `Limits()` where nothing was agreed."""

    organization: Limits = Limits()
    project: Limits = Limits()
    key: Limits = Limits()


@dataclass(frozen=True, kw_only=True)
class QueueCaps:
    """What may wait at most, by settings: requests, bytes and tokens of each scope."""

    run: Limits = Limits(queued_requests=5_000, queued_bytes=1 << 30)
    project: Limits = Limits(queued_requests=20_000, queued_bytes=2 << 30)
    organization: Limits = Limits(queued_requests=20_000, queued_bytes=2 << 30)
    server: Limits = Limits(queued_requests=100_000, queued_bytes=4 << 30)


DEFAULT_CAPS = QueueCaps()


def queue_limits(text: str) -> Limits:
    """`requests,bytes,tokens`, each a number or nothing; raises ValueError with a sentence."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or not all(part == "" or part.isdigit() for part in parts):
        raise ValueError(f"{text!r} is not `requests,bytes,tokens`, like `5000,1073741824,`.")
    requests, size, tokens = (int(part) if part else None for part in parts)
    return Limits(queued_requests=requests, queued_bytes=size, queued_tokens=tokens)


@dataclass(frozen=True)
class Bounds:
    """Everything that a submit has to stay within."""

    scoped: Sequence[Scoped] = field(default=(Scoped(keys.SERVER_SCOPE),))

    @property
    def scopes(self) -> str:
        return " ".join(one.scope for one in self.scoped)

    def rows(self) -> list[str | float]:
        return [value for one in self.scoped for value in one.row()]

    @classmethod
    def of(
        cls, user: Caller, project_id: str, run_id: str, caps: QueueCaps, account: AccountLimits
    ) -> Self:
        """The narrowest first: what is told is what the caller can change soonest."""
        organization = keys.organization_scope(user.organization_id)
        project = keys.project_scope(user.organization_id, project_id)
        return cls(
            (
                Scoped(keys.run_scope(run_id), caps.run),
                Scoped(keys.key_scope(user.key_id), account.key),
                Scoped(project, _both(caps.project, account.project)),
                Scoped(organization, _both(caps.organization, account.organization)),
                Scoped(keys.SERVER_SCOPE, caps.server),
            )
        )


def _both(one: Limits, other: Limits) -> Limits:
    """The narrower of each two."""
    narrower: dict[str, float] = {}
    for name in (part.name for part in fields(Limits)):
        given = [value for value in (getattr(one, name), getattr(other, name)) if value is not None]
        if given:
            narrower[name] = min(given)
    return Limits(**narrower)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why SUBMIT did not take a request in, as it says so."""

    scope: str
    what: str
    limit: str
    wait_seconds: float

    @property
    def queue_state(self) -> str:
        return "paused_rate_limit" if self.what in _RATES else "paused_capacity"

    @property
    def sentence(self) -> str:
        whose, what = _WHOSE[self.scope.partition(":")[0]], _WHAT[self.what]
        return f"{whose} may have {self.limit} {what}, and that is reached; try again later."

    @classmethod
    def parse(cls, row: Sequence[bytes]) -> Self:
        scope, what, limit, wait_ms = (value.decode() for value in row)
        return cls(scope=scope, what=what, limit=limit, wait_seconds=int(wait_ms) / 1000)


_RATES = ("per_second", "per_minute")
_WHOSE = {
    "run": "A training run or sampler",
    "key": "This API key",
    "project": "This project",
    "org": "This organization",
    "server": "This service",
}
_WHAT = {
    "requests": "requests waiting",
    "bytes": "bytes of requests waiting",
    "tokens": "tokens of requests waiting",
    "samples": "sampling requests at once",
    "runs": "training runs at once",
    "per_second": "requests a second",
    "per_minute": "tokens a minute",
}
