"""The second factor: codes by time (RFC 6238), each good once.

A user's secret is derived from the pepper and a nonce, so whoever steals the database has none of them.
"""

import base64
import hashlib
import hmac
import secrets
import time

import pyotp
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.errors import BadRequest

from tinsmith_server.accounts.tables import User

_STEP_SECONDS = 30


def new_nonce() -> str:
    return secrets.token_hex(20)


def secret_of(pepper: bytes, nonce: str) -> str:
    """Base32, as authenticator apps want it."""
    made = hmac.new(pepper, f"tinsmith second factor {nonce}".encode(), hashlib.sha256).digest()
    return base64.b32encode(made[:20]).decode()


def address_for_app(pepper: bytes, nonce: str, email: str) -> str:
    """`otpauth://...`, for an app to add."""
    return pyotp.TOTP(secret_of(pepper, nonce)).provisioning_uri(name=email, issuer_name="Tinsmith")


async def turn_on(sql: AsyncSession, pepper: bytes, user_id: str, nonce: str, code: str) -> None:
    """Once the app has shown that it knows the secret."""
    step = _step_of(pepper, nonce, code)
    if step is None:
        raise BadRequest("code: it does not match; is the clock of your device right?")
    user = await sql.get_one(User, user_id)
    user.totp_nonce, user.totp_last_step = nonce, step


async def turn_off(sql: AsyncSession, user_id: str) -> None:
    (await sql.get_one(User, user_id)).totp_nonce = None


async def passes(sql: AsyncSession, pepper: bytes, user_id: str, code: str) -> bool:
    """Whether the code is right and was not used yet; also for whoever has no second factor."""
    user = await sql.get_one(User, user_id)
    if user.totp_nonce is None:
        return True
    step = _step_of(pepper, user.totp_nonce, code)
    if step is None:
        return False
    used = (
        update(User)
        .where(User.id == user_id, User.totp_last_step < step)
        .values(totp_last_step=step)
        .returning(User.id)
    )
    return (await sql.execute(used)).first() is not None


def _step_of(pepper: bytes, nonce: str, code: str) -> int | None:
    """Which step the code is of: this one, or a neighbour, for clocks that differ a little."""
    totp, this = pyotp.TOTP(secret_of(pepper, nonce)), int(time.time()) // _STEP_SECONDS
    for step in (this - 1, this, this + 1):
        if pyotp.utils.strings_equal(code.replace(" ", ""), totp.generate_otp(step)):
            return step
    return None
