"""Who a request is from, once its key, token or cookie has been checked."""

from dataclasses import dataclass, field

from tinsmith_server.accounts.roles import Role
from tinsmith_server.accounts.scopes import ALL, Scope


@dataclass(frozen=True)
class Caller:
    key_id: str
    organization_id: str
    until: float | None = field(default=None, compare=False)
    """When the key, or the token that it came with, ends, in seconds since 1970, if it does."""
    project_id: str | None = None
    """The only project that is there for it; None for all of the organization's."""
    scopes: frozenset[Scope] = field(default=ALL, compare=False)


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
