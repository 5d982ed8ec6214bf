"""How an SDK says which one it is."""

import pytest
from starlette.requests import Request
from tinsmith_server.sdk_version import sdk_version


@pytest.mark.parametrize(
    ("header", "older_than_0_33"),
    [
        ("0.30.4", True),
        ("0.6.3", True),
        ("0.33.1", False),
        ("1.0.0", False),
        ("", False),
        ("x", False),
    ],
)
def test_who_is_no_sdk_is_newer_than_all(header: str, older_than_0_33: bool) -> None:
    headers = [(b"x-stainless-package-version", header.encode())] if header else []
    request = Request({"type": "http", "headers": headers})
    assert (sdk_version(request) < (0, 33)) is older_than_0_33
