"""Signing in at somebody else's: OpenID Connect's authorization code flow with PKCE. Knows no HTTP of ours.

OpenID Connect Core 1.0, 3.1; RFC 7636; RFC 9700. joserfc checks signatures and claims; only asymmetric
algorithms are taken, so neither `none` nor a signature with what the client knows is one.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import httpx
import msgspec
import structlog
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from joserfc.jwt import JWTClaimsRegistry
from tinsmith.protocol.errors import Forbidden

from tinsmith_server.accounts.links import new_secret
from tinsmith_server.accounts.oidc_settings import OidcSettings, is_safe_address
from tinsmith_server.remembered import Remembered

T = TypeVar("T")
_ALGORITHMS = ["RS256", "PS256", "ES256"]
_LEEWAY_SECONDS = 60
_TIMEOUT_SECONDS = 10.0
_DISCOVERY_SECONDS = 600.0
_LONGEST_SUBJECT = 255
_NOT_VALID = "The sign-in provider's answer is not valid; sign in again."
_log = structlog.get_logger()


class Discovery(msgspec.Struct, frozen=True, kw_only=True):
    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    id_token: str


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One try to sign in, between the browser's leaving and its coming back."""

    nonce: str
    verifier: str
    next: str
    links: str | None = None
    """The user whose account is to be opened by it from now on, if that is what it is for."""


@dataclass(frozen=True)
class Vouched:
    """Whom the provider vouches for: its own lasting name for them, and an address that is verified."""

    issuer: str
    subject: str
    email: str
    name: str


def new_attempt(next: str, links: str | None = None) -> Attempt:
    return Attempt(nonce=new_secret(), verifier=new_secret(), next=next, links=links)


class Provider:
    def __init__(
        self, settings: OidcSettings, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.settings, self._transport = settings, transport
        self._discovered = Remembered(self._discover, seconds=_DISCOVERY_SECONDS)

    async def address(self, attempt: Attempt, state: str, redirect_uri: str) -> str:
        """Where the browser goes to sign in."""
        at = await self._discovered.get(self.settings.issuer)
        asked = {
            "response_type": "code",
            "client_id": self.settings.client_id,
            "redirect_uri": redirect_uri,
            "scope": "openid email profile",
            "state": state,
            "nonce": attempt.nonce,
            "code_challenge": challenge_of(attempt.verifier),
            "code_challenge_method": "S256",
        }
        joint = "&" if urlsplit(at.authorization_endpoint).query else "?"
        return f"{at.authorization_endpoint}{joint}{urlencode(asked)}"

    async def identity(self, attempt: Attempt, code: str, redirect_uri: str) -> Vouched:
        """Whom the code stands for. Raises Forbidden for whatever is wrong with it."""
        at = await self._discovered.get(self.settings.issuer)
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": attempt.verifier,
        }
        tokens = await self._ask("POST", at.token_endpoint, Tokens, form)
        keys = await self._ask("GET", at.jwks_uri, dict[str, Any])
        return self._identity_in(tokens.id_token, keys, attempt.nonce)

    def _identity_in(self, id_token: str, keys: dict[str, Any], nonce: str) -> Vouched:
        try:
            key_set = KeySet.import_key_set(keys)  # type: ignore[arg-type]
            claims = jwt.decode(id_token, key_set, algorithms=_ALGORITHMS).claims
            self._rules(nonce).validate(claims)
        except (JoseError, ValueError, KeyError, TypeError) as error:
            _log.warning("oidc_token_refused", reason=type(error).__name__)
            raise Forbidden(_NOT_VALID) from None
        audience = claims["aud"]
        if audience not in (self.settings.client_id, [self.settings.client_id]):
            _log.warning("oidc_token_refused", reason="audience")
            raise Forbidden(_NOT_VALID)
        return _verified(claims)

    def _rules(self, nonce: str) -> JWTClaimsRegistry:
        return JWTClaimsRegistry(
            leeway=_LEEWAY_SECONDS,
            iss={"essential": True, "value": self.settings.issuer},
            aud={"essential": True, "value": self.settings.client_id},
            nonce={"essential": True, "value": nonce},
            exp={"essential": True},
            iat={"essential": True},
            sub={"essential": True},
        )

    async def _discover(self, issuer: str) -> Discovery:
        where = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
        found = await self._ask("GET", where, Discovery)
        addresses = (found.authorization_endpoint, found.token_endpoint, found.jwks_uri)
        if found.issuer != issuer or not all(is_safe_address(one) for one in addresses):
            _log.error("oidc_discovery_refused", issuer=issuer)
            raise Forbidden("The sign-in provider is not the one that TINSMITH_OIDC_ISSUER names.")
        return found

    async def _ask(
        self, method: str, url: str, kind: type[T], form: Mapping[str, str] | None = None
    ) -> T:
        """The client's secret goes with a form alone, and only to where discovery says."""
        secret = (self.settings.client_id, self.settings.client_secret) if form else None
        try:
            async with httpx.AsyncClient(
                transport=self._transport, timeout=_TIMEOUT_SECONDS, auth=secret
            ) as http:
                answer = await http.request(method, url, data=form)
            answer.raise_for_status()
            return msgspec.json.decode(answer.content, type=kind)
        except (httpx.HTTPError, msgspec.DecodeError, UnicodeDecodeError) as error:
            _log.warning("oidc_provider_failed", reason=type(error).__name__)
            raise Forbidden(
                "The sign-in provider did not answer as it should; try again."
            ) from None


def challenge_of(verifier: str) -> str:
    """S256 of RFC 7636."""
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _verified(claims: Mapping[str, Any]) -> Vouched:
    subject, email, name = claims["sub"], claims.get("email"), claims.get("name")
    if not (isinstance(subject, str) and 0 < len(subject) <= _LONGEST_SUBJECT):
        raise Forbidden(_NOT_VALID)
    if not isinstance(email, str) or claims.get("email_verified") is not True:
        raise Forbidden("The sign-in provider has not verified your e-mail address.")
    return Vouched(claims["iss"], subject, email, name if isinstance(name, str) else "")
