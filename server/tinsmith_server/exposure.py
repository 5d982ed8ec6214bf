"""Whether keys and cookies would cross a network in the clear."""

import ipaddress

from tinsmith_server.problems import Problem
from tinsmith_server.settings import Settings


def check_exposure(settings: Settings) -> None:
    """Raises Problem for an address that others reach, unless TLS is there or somebody answers for it."""
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise Problem("TLS takes two files: set TINSMITH_TLS_CERT and TINSMITH_TLS_KEY.")
    behind_tls = (settings.public_url or "").startswith("https://")
    if not (is_loopback(settings.host) or settings.tls_cert or behind_tls or settings.allow_http):
        raise Problem(
            f"Listening on {settings.host} would send keys and passwords in the clear. Set "
            "TINSMITH_TLS_CERT and TINSMITH_TLS_KEY; or TINSMITH_PUBLIC_URL=https://... with a proxy "
            "in front; or TINSMITH_ALLOW_HTTP=1 on a network that you trust."
        )


def is_loopback(host: str) -> bool:
    """A name is taken for one of this machine only if it is `localhost`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
