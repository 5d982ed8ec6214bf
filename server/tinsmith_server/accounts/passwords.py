"""Passwords: argon2id, and the time that a look at one takes whether or not there is one."""

import asyncio

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError
from tinsmith.protocol.errors import BadRequest

_SHORTEST, _LONGEST = 12, 1000
_hasher = PasswordHasher()  # RFC 9106's second recommendation: 64 MiB, 3 passes, 4 lanes
_NOBODYS = _hasher.hash("nobody's")


async def hashed(password: str) -> str:
    if not _SHORTEST <= len(password) <= _LONGEST:
        raise BadRequest(f"password: use {_SHORTEST} to {_LONGEST} characters.")
    return await asyncio.to_thread(_hasher.hash, password)


async def matches(password_hash: str | None, password: str) -> bool:
    """None for an account that is not there: as slow as a wrong password for one that is."""
    return await asyncio.to_thread(_matches, password_hash or _NOBODYS, password) and bool(
        password_hash
    )


def _matches(password_hash: str, password: str) -> bool:
    try:
        return _hasher.verify(password_hash, password[: _LONGEST + 1])
    except VerifyMismatchError:
        return False
