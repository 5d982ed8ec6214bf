"""Every error a caller can be told, and the status that makes the SDK do the right thing.

The official SDK retries 408, 409, 429 and 5xx for five minutes, so nothing permanent may carry one
of them. A message names the field and says what to do; it never quotes an exception as it fell.

TinsmithError
 ├─ BadRequest 400          the request can never work
 │   └─ Unsupported 400     known, but not offered by this service
 ├─ Unauthorized 401        no key, a wrong one, a revoked one
 │   └─ TokenInvalid 401    a token that ran out or is not ours: the SDK exchanges its key again
 ├─ PaymentRequired 402  a month that is spent: the SDK's BillingError
 ├─ Forbidden 403        whose key or role does not reach this far
 ├─ NotFound 404            absent, or someone else's: the caller cannot tell which
 ├─ Gone 410                a result that expired, or a future nobody knows
 ├─ Unprocessable 422       a body that does not parse
 ├─ TooMany 429             not now: a limit is reached, and Retry-After says when to ask again
 └─ Unavailable 503         a part of the service is down; this one and the last are retryable
"""

from collections.abc import Mapping
from enum import StrEnum
from math import ceil
from types import MappingProxyType


class Category(StrEnum):
    """Who can mend a failed future (`category` beside `error` in its result)."""

    USER = "user"
    SERVER = "server"


class TinsmithError(Exception):
    status = 400
    headers: Mapping[str, str] = MappingProxyType({})
    category = Category.USER

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BadRequest(TinsmithError):
    pass


class Unsupported(BadRequest):
    pass


class Unauthorized(TinsmithError):
    status = 401


class TokenInvalid(Unauthorized):
    headers = MappingProxyType({"WWW-Authenticate": 'Bearer error="invalid_token"'})


class PaymentRequired(TinsmithError):
    status = 402


class Forbidden(TinsmithError):
    status = 403


class NotFound(TinsmithError):
    status = 404


class Gone(TinsmithError):
    status = 410


class Unprocessable(TinsmithError):
    status = 422


class TooMany(TinsmithError):
    """Only for what passes by waiting: the SDK repeats it, and heeds a Retry-After of up to 60 s."""

    status = 429
    category = Category.SERVER

    def __init__(self, message: str, wait_seconds: float) -> None:
        super().__init__(message)
        self.headers = {"Retry-After": str(min(60, max(1, ceil(wait_seconds))))}


class Unavailable(TinsmithError):
    status = 503
    category = Category.SERVER
