"""Tokens that a key is exchanged for: JWTs (RFC 7519) signed with HS256, good for a quarter of an hour.

The SDK reads `whoami` out of their claims. The header is a constant and compared whole, so there is no
algorithm for a forger to choose. A token names its key, and lives no longer than it.
"""

import base64
import binascii
import hashlib
import hmac
import time

import msgspec
from tinsmith.protocol.errors import TokenInvalid

from tinsmith_server.accounts.caller import Caller
from tinsmith_server.accounts.urns import key_urn

LIFETIME_SECONDS = 900


class Claims(msgspec.Struct, kw_only=True, frozen=True):
    sub: str
    org_id: str
    key_id: str
    iat: int
    exp: int
    iss: str = "tinsmith"
    email: str = ""


def token_secret(pepper: bytes) -> bytes:
    """Of its own, so that no hash of a key is ever also a signature."""
    return hmac.new(pepper, b"tinsmith tokens", hashlib.sha256).digest()


def issue(secret: bytes, caller: Caller) -> str:
    """A token exchanged for a token ends when the first one would have."""
    issued = int(time.time())
    ends = issued + LIFETIME_SECONDS
    claims = Claims(
        sub=key_urn(caller.key_id),
        org_id=caller.organization_id,
        key_id=caller.key_id,
        iat=issued,
        exp=ends if caller.until is None else min(ends, int(caller.until)),
    )
    signed = f"{_HEADER}.{_encode(msgspec.json.encode(claims))}"
    return f"{signed}.{_signature(secret, signed)}"


def verify(secret: bytes, text: str) -> Caller:
    signed, _, signature = text.rpartition(".")
    header, _, payload = signed.partition(".")
    right = _signature(secret, signed)
    if header != _HEADER or not hmac.compare_digest(signature.encode(), right.encode()):
        raise TokenInvalid("The token was not issued here.")
    try:
        claims = msgspec.json.decode(_decode(payload), type=Claims)
    except (binascii.Error, msgspec.DecodeError):
        raise TokenInvalid("The token was not issued here.") from None
    if claims.exp <= time.time():
        raise TokenInvalid("The token has expired; exchange your key for a new one.")
    return Caller(claims.key_id, claims.org_id, until=claims.exp)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _signature(secret: bytes, signed: str) -> str:
    return _encode(hmac.new(secret, signed.encode(), hashlib.sha256).digest())


_HEADER = _encode(b'{"alg":"HS256","typ":"JWT"}')
