"""Links that need no key: whoever holds one may GET that one thing until it expires.

Clients fetch them without any header of ours, so all that is checked stands in the link.
"""

import hashlib
import hmac
import time
from datetime import UTC, datetime

from tinsmith.protocol.errors import Unauthorized

LIFETIME_SECONDS = 3600


class Signer:
    def __init__(self, pepper: bytes) -> None:
        self._secret = hmac.new(pepper, b"tinsmith links", hashlib.sha256).digest()

    def sign(self, path: str) -> tuple[str, datetime]:
        """The path with its signature, and when it stops to work."""
        expires = int(time.time()) + LIFETIME_SECONDS
        link = f"{path}?expires={expires}&signature={self._signature(path, expires)}"
        return link, datetime.fromtimestamp(expires, UTC)

    def check(self, path: str, expires: int, signature: str) -> None:
        right = self._signature(path, expires)
        if not hmac.compare_digest(signature.encode(), right.encode()):
            raise Unauthorized("signature: this link was not made here, or was altered.")
        if expires <= time.time():
            raise Unauthorized("expires: this link has expired; ask for a new one.")

    def _signature(self, path: str, expires: int) -> str:
        return hmac.new(self._secret, f"GET {path} {expires}".encode(), hashlib.sha256).hexdigest()
