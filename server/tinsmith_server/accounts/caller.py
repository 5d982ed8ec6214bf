"""Who a request is from, once its key, token or cookie has been checked."""

from dataclasses import dataclass, field

from tinsmith_server.accounts.roles import Role


@dataclass(frozen=True)
class Caller:
    key_id: str
    organization_id: str
    until: float | None = field(default=None, compare=False)
    """When the token that it came with expires, in seconds since 1970; a key has no such end."""


@dataclass(frozen=True)
class SignedIn:
    """Who looks at the console, and at which organization."""

    user_id: str
    email: str
    name: str
    organization_id: str
    organization: str
    role: Role
    operator: bool
