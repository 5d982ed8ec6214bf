"""What an API process is told of an OpenID Connect provider."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from tinsmith_server.accounts.roles import Role

_NAMES = ("ISSUER", "CLIENT_ID", "CLIENT_SECRET")
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True, kw_only=True)
class OidcSettings:
    issuer: str
    client_id: str
    client_secret: str
    domains: frozenset[str] = frozenset()
    """Whoever has a verified address there joins `default`; everybody else needs an invitation."""
    role: Role = Role.VIEWER
    """Of those who join by their domain."""

    @classmethod
    def parse(cls, environment: Mapping[str, str]) -> "OidcSettings | None":
        """Raises ValueError naming the setting; None when no issuer is named."""
        given = {name: environment.get(f"TINSMITH_OIDC_{name}", "") for name in _NAMES}
        if not given["ISSUER"]:
            return None
        for name, value in given.items():
            if not value:
                raise ValueError(f"TINSMITH_OIDC_{name} is not set, and TINSMITH_OIDC_ISSUER is.")
        if not is_safe_address(given["ISSUER"]):
            raise ValueError("TINSMITH_OIDC_ISSUER: give an https address.")
        if not environment.get("TINSMITH_PUBLIC_URL"):
            raise ValueError("TINSMITH_PUBLIC_URL is not set: the provider sends browsers there.")
        domains = environment.get("TINSMITH_OIDC_DOMAINS", "").lower().split(",")
        return cls(
            issuer=given["ISSUER"],
            client_id=given["CLIENT_ID"],
            client_secret=given["CLIENT_SECRET"],
            domains=frozenset(name.strip() for name in domains if name.strip()),
            role=_role(environment.get("TINSMITH_OIDC_ROLE") or Role.VIEWER.label),
        )


def is_safe_address(url: str) -> bool:
    """https, or this machine."""
    parts = urlsplit(url)
    return bool(parts.hostname) and (
        parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
    )


def _role(text: str) -> Role:
    if text not in (Role.VIEWER.label, Role.MEMBER.label):
        raise ValueError("TINSMITH_OIDC_ROLE: viewer or member; admins and owners are invited.")
    return Role.parse(text)
