"""Which SDK asks, for the few answers that an older one would refuse."""

import re

from fastapi import Request

_HEADER = "x-stainless-package-version"
_NEWEST = (1 << 30,)


def sdk_version(request: Request) -> tuple[int, ...]:
    """As it names itself; of whoever is no SDK, newer than all."""
    found = re.match(r"(\d{1,6})\.(\d{1,6})", request.headers.get(_HEADER, ""))
    return tuple(map(int, found.groups())) if found else _NEWEST
