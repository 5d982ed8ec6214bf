"""Secrets that stand in a link or a cookie: 256 bits, and only their hash is kept."""

import hashlib
import hmac
import secrets


def new_secret() -> str:
    return secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """Of 256 random bits, so it needs neither salt nor slowness."""
    return hashlib.sha256(secret.encode()).hexdigest()


def derived(pepper: bytes, purpose: str) -> str:
    """A secret that every API process arrives at by itself."""
    return hmac.new(pepper, f"tinsmith {purpose}".encode(), hashlib.sha256).hexdigest()
