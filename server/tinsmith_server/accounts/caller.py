"""Who a request is from, once its key or token has been checked."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Caller:
    key_id: str
    organization_id: str
    until: float | None = field(default=None, compare=False)
    """When the token that it came with expires, in seconds since 1970; a key has no such end."""
