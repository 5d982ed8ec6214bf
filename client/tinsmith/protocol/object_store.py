"""What both ends of the object store must agree on: how patient they are, and what its refusals mean.

Pure data. The client library is the rooms' business; here are its options and the text of its errors.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

OUT_OF_REACH = "The service's store is out of reach just now."
_CONNECTS_WITHIN = timedelta(seconds=5)
_ANSWERS_WITHIN = timedelta(seconds=15)
"""Without a byte. A transfer as a whole may take as long as it takes."""
_RETRIES = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=10),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=2),
        "base": 2,
    },
}
"""Of one request. Whoever asked asks again; minutes in here would hide an outage."""
_COME_AGAIN = (408, 425, 429)
_FULL = 507
_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_REGION = "AWS_REGION: the bucket is in another region, or has another address (AWS_ENDPOINT)."
_SETTINGS = {
    "InvalidAccessKeyId": "AWS_ACCESS_KEY_ID: the store does not know this key.",
    "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY: it does not belong to AWS_ACCESS_KEY_ID.",
    "InvalidToken": "AWS_SESSION_TOKEN: the store does not know it.",
    "ExpiredToken": "AWS_SESSION_TOKEN: it has expired.",
    "AccessDenied": "AWS_ACCESS_KEY_ID: this key may not list, read, write and delete there.",
    "NoSuchBucket": "TINSMITH_STORE_URL: the store has no bucket of this name.",
    "InvalidBucketName": "TINSMITH_STORE_URL: no bucket can have this name.",
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "RequestTimeTooSkewed": "This machine's clock differs from the store's.",
}
"""By S3's code (Amazon S3 API reference, "Error responses")."""


def access_options(environment: Mapping[str, str]) -> dict[str, Any]:
    """For obstore's `from_url`, which then takes no client's option from the environment by itself."""
    named = (environment.get(f"{cloud}_ALLOW_HTTP", "") for cloud in ("AWS", "AZURE", "GOOGLE"))
    options: dict[str, Any] = {
        "connect_timeout": _CONNECTS_WITHIN,
        "read_timeout": _ANSWERS_WITHIN,
        "timeout": timedelta(days=1),
        "allow_http": any(text.lower() in ("1", "true") for text in named),
    }
    return {"client_options": options, "retry_config": _RETRIES}


@dataclass(frozen=True)
class Refusal:
    """The store was heard, and will say the same again."""

    status: int
    code: str
    """S3's name for it, or nothing."""

    def __str__(self) -> str:
        return f"{self.status} {self.code}".strip()


def refusal(error: str) -> Refusal | None:
    """Of the text of the client library's error; None for what passes by waiting."""
    if "incorrectly configured region" in error:
        return Refusal(301, "PermanentRedirect")
    found = _STATUS.search(error)
    if found is None:
        return None
    status, code = int(found[1]), _CODE.search(error)
    if status in _COME_AGAIN or (status >= 500 and status != _FULL):
        return None
    return Refusal(status, code[1] if code else "")


def wrong_setting(error: str) -> str | None:
    """The setting that the store refuses us for, in a sentence; None if it is none."""
    if "HTTP error: builder error" in error:  # of a URL that it may not use
        return "AWS_ENDPOINT: it is http and not https; set AWS_ALLOW_HTTP=true to allow that."
    refused = refusal(error)
    return None if refused is None else _SETTINGS.get(refused.code)
