"""Signing in at a provider: a small one that is real, and each way in which its word may not be taken."""

import asyncio
import base64
import hashlib
import html
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from fastapi import FastAPI, Form, Request
from fastapi.responses import JSONResponse, RedirectResponse
from joserfc import jwt
from joserfc.jwk import KeySet, OctKey, RSAKey
from sqlalchemy import select
from tinsmith_server.accounts import members
from tinsmith_server.accounts.oidc import Provider
from tinsmith_server.accounts.oidc_settings import OidcSettings
from tinsmith_server.accounts.organizations import organization_named
from tinsmith_server.accounts.roles import Role
from tinsmith_server.accounts.tables import Identity, Invitation, Member, User
from tinsmith_server.settings import Settings, SettingsError

from tests.console.conftest import PASSWORD, URL, Browser, join, running, set_up

ISSUER = "https://id.example.org/realm"
ID, SECRET = "tinsmith", "s3cret"
KEY = RSAKey.generate_key(2048, {"kid": "one"}, private=True)
OTHER = RSAKey.generate_key(2048, {"kid": "one"}, private=True)


@dataclass
class SmallProvider:
    """Codes for whoever is at its browser, tokens for codes; and lies when it is told to."""

    email: str = "ada@example.org"
    claims: dict[str, Any] = field(default_factory=dict)
    header: dict[str, str] = field(default_factory=lambda: {"alg": "RS256", "kid": "one"})
    key: Any = field(default_factory=lambda: KEY)
    issuer: str = ISSUER
    codes: dict[str, dict[str, str]] = field(default_factory=dict)

    def token(self, nonce: str) -> str:
        now = int(time.time())
        claims = {
            "iss": ISSUER, "aud": ID, "sub": "7", "nonce": nonce, "iat": now, "exp": now + 60,
            "email": self.email, "email_verified": True, "name": "Ada",
        } | self.claims  # fmt: skip
        claims = {name: value for name, value in claims.items() if value is not None}
        if self.header["alg"] == "none":
            parts = (jwt.encode({"alg": "RS256"}, claims, KEY)).split(".")
            head = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
            return f"{head}.{parts[1]}."
        return jwt.encode(self.header, claims, self.key, algorithms=[self.header["alg"]])

    def app(self) -> FastAPI:
        app, at = FastAPI(), ISSUER

        @app.get("/realm/.well-known/openid-configuration")
        async def discovery() -> dict[str, str]:
            paths = {
                "authorization_endpoint": "auth", "token_endpoint": "token", "jwks_uri": "keys"
            }  # fmt: skip
            return {"issuer": self.issuer} | {k: f"{at}/{path}" for k, path in paths.items()}

        @app.get("/realm/auth")
        async def auth(request: Request) -> RedirectResponse:
            asked = dict(request.query_params)
            assert (asked["response_type"], asked["client_id"]) == ("code", ID)
            assert asked["code_challenge_method"] == "S256"
            code = f"code{len(self.codes)}"
            self.codes[code] = asked
            return RedirectResponse(f"{asked['redirect_uri']}?code={code}&state={asked['state']}")

        @app.post("/realm/token")
        async def token(
            request: Request,
            code: str = Form(),
            code_verifier: str = Form(),
            redirect_uri: str = Form(),
        ) -> JSONResponse:
            asked = self.codes.pop(code, None)
            right = base64.b64encode(f"{ID}:{SECRET}".encode()).decode()
            digest = hashlib.sha256(code_verifier.encode()).digest()
            challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
            if (
                asked is None
                or request.headers["authorization"] != f"Basic {right}"
                or asked["code_challenge"] != challenge
                or asked["redirect_uri"] != redirect_uri
            ):
                return JSONResponse({"error": "invalid_grant"}, 400)
            return JSONResponse({"id_token": self.token(asked["nonce"]), "token_type": "Bearer"})

        @app.get("/realm/keys")
        async def keys() -> Any:
            return KeySet([KEY]).as_dict(private=False)

        return app


@asynccontextmanager
async def signing_in(
    settings: Settings, provider: SmallProvider, **policy: Any
) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    """A set-up service whose owner is ada@example.org, subject 7 there, and a client of the provider."""
    oidc = OidcSettings(issuer=ISSUER, client_id=ID, client_secret=SECRET, **policy)
    async with running(replace(settings, oidc=oidc, public_url=URL)) as app:
        transport = httpx.ASGITransport(app=provider.app())
        app.state.service.oidc = Provider(oidc, transport)
        async with Browser(app) as owner:
            await set_up(owner, settings)
        async with app.state.service.db.begin() as sql:
            ada = await members.user_of(sql, "ada@example.org")
            assert ada is not None
            sql.add(Identity(issuer=ISSUER, subject="7", user_id=ada.id))
        async with httpx.AsyncClient(transport=transport) as http:
            yield app, http


async def leave(browser: Browser, http: httpx.AsyncClient, next: str = "/") -> str:
    """As far as the address that the provider sends the browser back to."""
    there = await browser.get("/sign-in/provider", params={"next": next})
    assert there.status_code == 303, there.text
    return (await http.get(there.headers["location"])).headers["location"]


async def come_back(browser: Browser, address: str) -> httpx.Response:
    return await browser.get(address, headers={"Sec-Fetch-Site": "cross-site"})


def test_a_member_signs_in_and_lands_where_they_wanted(settings: Settings) -> None:
    async def flow() -> None:
        provider = SmallProvider(email="Ada@Example.org")
        async with signing_in(settings, provider) as (app, http), Browser(app) as browser:
            assert "/sign-in/provider?next=/keys" in (await browser.get("/sign-in?next=/keys")).text
            answer = await come_back(browser, await leave(browser, http, "/keys"))
            assert (answer.status_code, answer.headers["location"]) == (303, "/keys")
            assert "owner of default" in (await browser.get("/account")).text
            away = await leave(browser, http, "//evil.example")
            assert (await come_back(browser, away)).headers["location"] == "/"

    asyncio.run(flow())


def test_an_account_stays_with_its_subject_whatever_addresses_become(settings: Settings) -> None:
    """Ada moves to another address there and Eve to hers: each is who they were."""

    async def flow() -> None:
        provider = SmallProvider(email="eve@example.org", claims={"sub": "666"})
        async with signing_in(settings, provider) as (app, http):
            async with app.state.service.db.begin() as sql:
                where = await organization_named(sql, "default")
                row, _ = members.invitation_to(where.id, Role.VIEWER, "eve@example.org", None)
                sql.add(row)
            for email, sub, name in (
                ("eve@example.org", "666", "eve@example.org, viewer"),
                ("lovelace@example.org", "7", "ada@example.org, owner"),
                ("ada@example.org", "666", "eve@example.org, viewer"),
            ):
                provider.email, provider.claims = email, {"sub": sub}
                async with Browser(app) as browser:
                    answer = await come_back(browser, await leave(browser, http))
                    assert answer.status_code == 303
                    assert f"{name} of default" in (await browser.get("/account")).text
            async with app.state.service.db.begin() as sql:
                assert len((await sql.scalars(select(User))).all()) == 2

    asyncio.run(flow())


def test_an_invitation_to_somebody_else_is_not_taken_by_a_new_address(settings: Settings) -> None:
    async def flow() -> None:
        provider = SmallProvider(email="boss@example.org")
        async with signing_in(settings, provider) as (app, http), Browser(app) as browser:
            async with app.state.service.db.begin() as sql:
                where = await organization_named(sql, "labs")
                row, _ = members.invitation_to(where.id, Role.OWNER, "boss@example.org", None)
                sql.add(row)
            assert (await come_back(browser, await leave(browser, http))).status_code == 303
            async with app.state.service.db.begin() as sql:
                assert (await sql.scalars(select(Invitation.used_at).where(
                    Invitation.email == "boss@example.org"))).all() == [None]  # fmt: skip

    asyncio.run(flow())


CONTINUE = re.compile(r'role="button" href="([^"]+)">Continue')


async def link(browser: Browser, http: httpx.AsyncClient, password: str) -> httpx.Response:
    """From the page Account to the provider and back."""
    page = await browser.submit("/account/provider", password=password)
    found = CONTINUE.search(page.text)
    if found is None:
        return page
    there = await http.get(html.unescape(found[1]))
    return await come_back(browser, there.headers["location"])


def test_whoever_has_an_account_links_it_with_their_password(settings: Settings) -> None:
    async def flow() -> None:
        provider = SmallProvider(email="grace@work.example", claims={"sub": "8"})
        async with signing_in(settings, provider) as (app, http):
            grace, _ = await join(app, "grace@example.org", Role.MEMBER)
            wrong = await link(grace, http, "not my password")
            assert (wrong.status_code, "Continue" in wrong.text) == (400, False)
            assert (await link(grace, http, PASSWORD)).status_code == 303
            assert (await link(grace, http, PASSWORD)).status_code == 400
            await grace.aclose()
            async with Browser(app) as browser:
                assert (await come_back(browser, await leave(browser, http))).status_code == 303
                assert "grace@example.org, member" in (await browser.get("/account")).text
                answer = await browser.submit("/account/provider/off", password="not mine at all")
                assert answer.status_code == 400
                answer = await browser.submit("/account/provider/off", password=PASSWORD)
                assert answer.status_code == 303
            async with Browser(app) as browser:
                assert (await come_back(browser, await leave(browser, http))).status_code == 403

    asyncio.run(flow())


def test_a_link_is_made_by_the_browser_that_asked_for_it_alone(settings: Settings) -> None:
    """Or a foreign identity could be planted in an account, or somebody's taken into one's own."""

    async def flow() -> None:
        provider = SmallProvider(email="eve@example.org", claims={"sub": "8"})
        async with signing_in(settings, provider) as (app, http):
            grace, _ = await join(app, "grace@example.org", Role.MEMBER)
            eve, _ = await join(app, "eve@example.org", Role.MEMBER)
            page = await eve.submit("/account/provider", password=PASSWORD)
            found = CONTINUE.search(page.text)
            assert found is not None
            back = (await http.get(html.unescape(found[1]))).headers["location"]
            grace.cookies.set("tinsmith-oidc", eve.cookies["tinsmith-oidc"])
            assert (await come_back(grace, back)).status_code == 403
            grace.cookies.delete("tinsmith-oidc")
            provider.claims = {"sub": "7"}
            assert (await link(grace, http, PASSWORD)).status_code == 400
            await grace.aclose()
            await eve.aclose()
            async with app.state.service.db.begin() as sql:
                assert (await sql.scalars(select(Identity.subject))).all() == ["7"]

    asyncio.run(flow())


LIES: dict[str, dict[str, Any]] = {
    "another nonce": {"claims": {"nonce": "other"}},
    "no nonce": {"claims": {"nonce": None}},
    "another audience": {"claims": {"aud": "other"}},
    "another audience too": {"claims": {"aud": [ID, "other"]}},
    "no audience": {"claims": {"aud": None}},
    "another issuer": {"claims": {"iss": "https://evil.example"}},
    "expired": {"claims": {"exp": int(time.time()) - 3600}},
    "never expires": {"claims": {"exp": None}},
    "not yet": {"claims": {"nbf": int(time.time()) + 3600}},
    "not signed": {"header": {"alg": "none"}},
    "signed by another key": {"key": OTHER},
    "signed with the client's secret": {
        "header": {"alg": "HS256", "kid": "one"}, "key": OctKey.import_key(SECRET * 6)
    },
    "not verified": {"claims": {"email_verified": False}},
    "verified in words": {"claims": {"email_verified": "true"}},
    "verification not told": {"claims": {"email_verified": None}},
    "no address": {"claims": {"email": None}},
    "odd address": {"claims": {"email": ["ada@example.org"]}},
    "no subject": {"claims": {"sub": None}},
    "an empty subject": {"claims": {"sub": ""}},
    "an odd subject": {"claims": {"sub": 7}},
    "a stranger": {"email": "eve@example.org", "claims": {"sub": "8"}},
    "a stranger under a member's address": {"claims": {"sub": "8"}},
    "another realm": {"issuer": "https://id.example.org/other"},
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_word_that_cannot_be_taken_lets_nobody_in(settings: Settings, lie: str) -> None:
    provider = SmallProvider(**LIES[lie])

    async def flow() -> int:
        async with signing_in(settings, provider) as (app, http), Browser(app) as browser:
            there = await browser.get("/sign-in/provider")
            if there.status_code == 303:
                back = (await http.get(there.headers["location"])).headers["location"]
                there = await come_back(browser, back)
            assert (await browser.get("/account")).status_code == 303
            async with app.state.service.db.begin() as sql:
                assert len((await sql.scalars(select(User))).all()) == 1
            return there.status_code

    assert asyncio.run(flow()) == 403


def test_a_state_is_good_once_and_in_its_own_browser(settings: Settings) -> None:
    async def flow() -> None:
        provider = SmallProvider()
        async with signing_in(settings, provider) as (app, http), Browser(app) as browser:
            back = await leave(browser, http)
            state = parse_qs(urlsplit(back).query)["state"][0]
            async with Browser(app) as victim:
                assert (await come_back(victim, back)).status_code == 403
                await leave(victim, http)
                assert (await come_back(victim, back)).status_code == 403
            cookie = browser.cookies["tinsmith-oidc"]
            assert cookie == state
            assert (await come_back(browser, back)).status_code == 303
            browser.cookies.set("tinsmith-oidc", cookie)
            provider.codes["code0"] = {}
            assert (await come_back(browser, back)).status_code == 403
            for odd in ("", "?state=", "?code=x", "?state=x&code=y", "?error=access_denied"):
                odd_one = await come_back(browser, f"/sign-in/provider/callback{odd}")
                assert odd_one.status_code == 403

    asyncio.run(flow())


def test_whoever_said_no_at_the_provider_is_told_so(settings: Settings) -> None:
    async def flow() -> None:
        async with (
            signing_in(settings, SmallProvider()) as (app, http),
            Browser(app) as browser,
        ):
            state = parse_qs(urlsplit(await leave(browser, http)).query)["state"][0]
            back = f"/sign-in/provider/callback?state={state}&error=access_denied"
            answer = await come_back(browser, back)
            assert (answer.status_code, "did not let you in" in answer.text) == (403, True)

    asyncio.run(flow())


@pytest.mark.parametrize(("to", "code"), [("grace@example.org", 303), (None, 403)])
def test_an_invitation_to_the_address_is_taken_and_an_open_one_is_not(
    settings: Settings, to: str | None, code: int
) -> None:
    async def flow() -> None:
        provider = SmallProvider(email="grace@example.org", claims={"sub": "8"})
        async with signing_in(settings, provider) as (app, http), Browser(app) as browser:
            async with app.state.service.db.begin() as sql:
                where = await organization_named(sql, "labs")
                row, secret = members.invitation_to(where.id, Role.MEMBER, to, None)
                sql.add(row)
            answer = await come_back(browser, await leave(browser, http))
            assert answer.status_code == code
            if code == 303:
                assert "member of labs" in (await browser.get("/account")).text
                again = await browser.get("/invitation", params={"token": secret})
                assert again.status_code == 404

    asyncio.run(flow())


@pytest.mark.parametrize(
    ("email", "code"),
    [
        ("x@labs.example.org", 303),
        ("x@LABS.example.org", 303),
        ("x@labs.example.org.evil.example", 403),
        ("x@labs.example.org@evil.example", 403),
        ("x@a.labs.example.org", 403),
    ],
)
def test_a_domain_that_is_open_makes_viewers(settings: Settings, email: str, code: int) -> None:
    async def flow() -> None:
        provider = SmallProvider(email=email, claims={"sub": "8"})
        labs = frozenset({"labs.example.org"})
        async with (
            signing_in(settings, provider, domains=labs) as (app, http),
            Browser(app) as browser,
        ):
            assert (await come_back(browser, await leave(browser, http))).status_code == code
            async with app.state.service.db.begin() as sql:
                roles = sorted((await sql.scalars(select(Member.role))).all())
            assert roles == (["owner", "viewer"] if code == 303 else ["owner"])

    asyncio.run(flow())


def test_a_removed_member_does_not_come_back_by_the_provider(settings: Settings) -> None:
    async def flow() -> None:
        provider = SmallProvider(email="grace@example.org", claims={"sub": "8"})
        async with signing_in(settings, provider) as (app, http), Browser(app) as browser:
            await join(app, "grace@example.org", Role.MEMBER)
            async with app.state.service.db.begin() as sql:
                user = await members.user_of(sql, "grace@example.org")
                assert user is not None
                sql.add(Identity(issuer=ISSUER, subject="8", user_id=user.id))
                [row] = (await sql.scalars(select(Member).where(Member.user_id == user.id))).all()
                await sql.delete(row)
            assert (await come_back(browser, await leave(browser, http))).status_code == 403

    asyncio.run(flow())


def test_without_a_provider_there_is_no_such_way(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app, Browser(app) as browser:
            for path in ("/sign-in/provider", "/sign-in/provider/callback?state=x&code=y"):
                assert (await browser.get(path)).status_code == 404
            assert "provider" not in (await browser.get("/sign-in")).text

    asyncio.run(flow())


WHOLE = {
    "TINSMITH_REDIS_URL": "redis://nowhere",
    "TINSMITH_PUBLIC_URL": "https://tinsmith.example.org",
    "TINSMITH_OIDC_ISSUER": ISSUER,
    "TINSMITH_OIDC_CLIENT_ID": ID,
    "TINSMITH_OIDC_CLIENT_SECRET": SECRET,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TINSMITH_PUBLIC_URL", ""),
        ("TINSMITH_OIDC_CLIENT_ID", ""),
        ("TINSMITH_OIDC_CLIENT_SECRET", ""),
        ("TINSMITH_OIDC_ISSUER", "http://id.example.org"),
        ("TINSMITH_OIDC_ROLE", "owner"),
    ],
)
def test_half_a_provider_is_refused_by_name(tmp_path: Any, name: str, value: str) -> None:
    whole = WHOLE | {"TINSMITH_DATA_DIR": str(tmp_path)}
    found = Settings.from_environment(whole | {"TINSMITH_OIDC_DOMAINS": "Example.org, "}).oidc
    assert found is not None
    assert (found.domains, found.role) == (frozenset({"example.org"}), Role.VIEWER)
    with pytest.raises(SettingsError, match=name):
        Settings.from_environment(whole | {name: value})
