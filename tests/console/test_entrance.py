"""The way in: once, throttled, with a session that is always new, from this site only."""

import asyncio
import re
from dataclasses import replace

import httpx
import pyotp
import pytest
from sqlalchemy import select
from tinsmith_server.accounts import members
from tinsmith_server.accounts.roles import Role
from tinsmith_server.accounts.tables import ConsoleSession, User
from tinsmith_server.settings import Settings

from tests.console.conftest import PASSWORD, URL, Browser, join, running, set_up


def sign_in_form(password: str = PASSWORD, **more: str) -> dict[str, str]:
    return {"email": "Ada@example.org", "password": password} | more


def test_the_first_owner_is_made_by_the_link_once(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app, Browser(app) as browser:
            wrong = {
                "token": "0" * 64,
                "email": "eve@example.org",
                "name": "Eve",
                "password": PASSWORD,
            }
            assert (await browser.post("/setup", data=wrong)).status_code == 404
            await set_up(browser, settings)
            assert "owner of default" in (await browser.get("/account")).text
            async with Browser(app) as other:
                right = wrong | {"token": members.setup_secret(settings.key_pepper)}
                assert (await other.post("/setup", data=right)).status_code == 404
                assert (await other.get("/setup")).headers["location"] == "/sign-in"

    asyncio.run(flow())


def test_nobody_signed_in_is_sent_to_sign_in_and_back(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app, Browser(app) as browser:
            await set_up(browser, settings)
            browser.cookies.clear()
            sent = await browser.get("/account?tab=2")
            assert sent.headers["location"] == "/sign-in?next=%2Faccount%3Ftab%3D2"
            back = await browser.post("/sign-in", data=sign_in_form(next="/account?tab=2"))
            assert back.headers["location"] == "/account?tab=2"
            assert (await browser.get("/account")).status_code == 200

    asyncio.run(flow())


@pytest.mark.parametrize(
    "where", ["//evil.example", "/\\evil.example", "https://evil.example", "evil", "/\t/evil", ""]
)
def test_signing_in_never_leads_to_another_site(settings: Settings, where: str) -> None:
    async def flow() -> None:
        async with running(settings) as app, Browser(app) as browser:
            await set_up(browser, settings)
            answer = await browser.post("/sign-in", data=sign_in_form(next=where))
            assert answer.headers["location"] == "/"
            page = await browser.get("/sign-in", params={"next": where})
            assert 'name="next" value="/"' in page.text

    asyncio.run(flow())


def test_a_session_is_new_at_every_sign_in_and_ends_with_it(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app, Browser(app) as browser:
            await set_up(browser, settings)
            browser.cookies.clear()
            browser.cookies.set("tinsmith", "chosen-by-an-attacker")
            answer = await browser.post("/sign-in", data=sign_in_form())
            first = answer.cookies["tinsmith"]
            assert first != "chosen-by-an-attacker"
            assert (await browser.get("/account")).status_code == 200
            second = (await browser.post("/sign-in", data=sign_in_form())).cookies["tinsmith"]
            assert second != first
            for secret, works in ((first, False), (second, True)):
                browser.cookies.clear()
                browser.cookies.set("tinsmith", secret)
                assert (await browser.get("/account")).is_success is works
            assert (await browser.submit("/sign-out")).status_code == 303
            browser.cookies.set("tinsmith", second)
            assert (await browser.get("/account")).status_code == 303
            async with app.state.service.db.begin() as sql:
                ids = (await sql.scalars(select(ConsoleSession.id))).all()
            assert not {first, second} & set(ids)

    asyncio.run(flow())


def test_guessing_is_throttled_by_account(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app, Browser(app) as browser:
            await set_up(browser, settings)
            guesses = [
                (await browser.post("/sign-in", data=sign_in_form(f"wrong {n}"))).status_code
                for n in range(11)
            ]
            assert guesses == [403] * 10 + [429]
            stopped = await browser.post("/sign-in", data=sign_in_form())
            assert stopped.status_code == 429
            assert "wait" in stopped.text

    asyncio.run(flow())


def test_guessing_is_throttled_by_address(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app, Browser(app) as browser:
            await set_up(browser, settings)
            redis = app.state.service.bus.redis
            await browser.post("/sign-in", data={"email": "x@example.org", "password": "y"})
            [key] = await redis.keys("signin:address:*")
            await redis.set(key, 50, keepttl=True)
            assert (await browser.post("/sign-in", data=sign_in_form())).status_code == 429

    asyncio.run(flow())


def test_other_sites_and_stale_forms_are_refused(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app, Browser(app) as browser:
            await set_up(browser, settings)
            token = {"csrf_token": await browser.token()}

            async def leave(data: dict[str, str], headers: dict[str, str]) -> int:
                async with httpx.AsyncClient(
                    transport=browser._transport, base_url=URL, cookies=browser.cookies
                ) as plain:
                    return (await plain.post("/sign-out", data=data, headers=headers)).status_code

            for site in ("cross-site", "same-site"):
                assert await leave(token, {"Sec-Fetch-Site": site}) == 403
            assert await leave(token, {"Origin": "https://evil.example"}) == 403
            assert await leave(token, {"Origin": "null"}) == 403
            assert await leave(token, {}) == 403
            assert await leave({}, {"Origin": URL}) == 403
            assert await leave({"csrf_token": "0" * 64}, {"Origin": URL}) == 403
            assert (await browser.get("/account")).status_code == 200  # nothing of it signed out
            assert await leave(token, {"Origin": URL}) == 303

    asyncio.run(flow())


def test_pages_carry_strict_headers_and_the_cookie_its_prefix(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app, Browser(app, "https://tinsmith.example") as browser:
            await set_up(browser, settings)
            answer = await browser.post("/sign-in", data=sign_in_form())
            cookie = answer.headers["set-cookie"]
            assert cookie.startswith("__Host-tinsmith=")
            for flag in ("Secure", "HttpOnly", "SameSite=lax", "Path=/"):
                assert flag in cookie
            assert "Domain" not in cookie
            for path in ("/account", "/sign-in", "/invitation?token=x"):
                headers = (await browser.get(path)).headers
                assert "default-src 'none'" in headers["content-security-policy"]
                assert "unsafe" not in headers["content-security-policy"]
                assert headers["x-content-type-options"] == "nosniff"
                assert headers["x-frame-options"] == "DENY"
                assert headers["cache-control"] == "no-store"
                assert "max-age" in headers["strict-transport-security"]

    asyncio.run(flow())


def test_the_clear_is_for_this_machine_alone_unless_told(settings: Settings) -> None:
    async def flow() -> None:
        for allowed, status in ((False, 400), (True, 200)):
            async with (
                running(replace(settings, allow_http=allowed)) as app,
                Browser(app, "http://tinsmith.example") as browser,
            ):
                assert (await browser.get("/sign-in")).status_code == status

    asyncio.run(flow())


def test_a_second_factor_is_asked_and_each_code_is_good_once(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app, Browser(app) as browser:
            await set_up(browser, settings)
            page = (await browser.get("/account")).text
            secret = re.search(r"<code>(\w+)</code>", page)
            nonce = re.search(r'name="nonce" value="(\w+)"', page)
            assert secret is not None
            assert nonce is not None
            code = pyotp.TOTP(secret[1]).now()
            assert (await browser.submit("/account/two-factor", nonce=nonce[1], code="1")).is_error
            on = await browser.submit("/account/two-factor", nonce=nonce[1], code=code)
            assert on.status_code == 303
            browser.cookies.clear()
            assert (await browser.post("/sign-in", data=sign_in_form())).status_code == 403
            used = await browser.post("/sign-in", data=sign_in_form(code=code))
            assert used.status_code == 403
            async with app.state.service.db.begin() as sql:
                user = await members.user_of(sql, "ada@example.org")
                assert user is not None
                assert secret[1] not in str(vars(user))
                user.totp_last_step -= 1  # as if a step had gone by
            fresh = await browser.post("/sign-in", data=sign_in_form(code=code))
            assert fresh.status_code == 303

    asyncio.run(flow())


def test_an_invitation_is_used_once_and_gives_its_role(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app, Browser(app) as owner:
            await set_up(owner, settings)
            viewer, secret = await join(app, "bo@example.org", Role.VIEWER)
            assert "viewer of default" in (await viewer.get("/account")).text
            for token in (secret, "nonsense"):
                assert (await owner.get(f"/invitation?token={token}")).status_code == 404

    asyncio.run(flow())


def test_a_password_is_changed_and_every_browser_signed_out(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app, Browser(app) as browser:
            await set_up(browser, settings)
            fields = {"old": PASSWORD, "new": "an even longer sentence"}
            assert (await browser.submit("/account/password", old="x", new=PASSWORD)).is_error
            assert (await browser.submit("/account/password", **fields)).status_code == 303
            assert (await browser.get("/account")).status_code == 303
            assert (await browser.post("/sign-in", data=sign_in_form())).status_code == 403
            entered = await browser.post("/sign-in", data=sign_in_form(fields["new"]))
            assert entered.status_code == 303
            async with app.state.service.db.begin() as sql:
                [user] = (await sql.scalars(select(User))).all()
            assert user.password_hash.startswith("$argon2id$")

    asyncio.run(flow())


def test_a_huge_form_is_refused(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app, Browser(app) as browser:
            answer = await browser.post("/sign-in", data=sign_in_form("x" * (2 << 20)))
            assert answer.status_code == 400

    asyncio.run(flow())
