"""The page of limits: what is agreed on it holds, its meters are the queue's figures, its banner is for admins."""

import asyncio
import re

import httpx
import pytest
from fastapi import FastAPI
from tinsmith_server.accounts.limits import LimitValues, Subject, all_limits
from tinsmith_server.accounts.meters import meters
from tinsmith_server.accounts.roles import Role
from tinsmith_server.settings import Settings
from tinsmith_worker.queue import Queue

from tests.console.conftest import Browser, join, running, set_up
from tests.console.test_keys import client, make, member
from tests.console.test_limits import CARD, agree, use


async def signed_in(app: FastAPI, settings: Settings) -> Browser:
    browser = Browser(app)
    await set_up(browser, settings)
    return browser


async def all_of(app: FastAPI, organization_id: str) -> dict[tuple[Subject, str], LimitValues]:
    async with app.state.service.db.begin() as sql:
        return await all_limits(sql, organization_id)


def test_what_the_form_says_holds_and_is_shown_again(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app:
            browser = await signed_in(app, settings)
            ada = await member(app)
            row, text = await make(app, ada)
            given = {"of": f"key:{row.id}", "requests_per_second": "0.5", "live_runs": "3"}
            answer = await browser.submit("/limits", **given)
            assert answer.status_code == 303
            agreed = await all_of(app, ada.organization_id)
            expected = LimitValues(requests_per_second=0.5, live_runs=3)
            assert agreed == {(Subject.KEY, row.id): expected}
            caller = await app.state.service.keys.caller(text)
            assert (await app.state.service.limits.of_account(caller, "red")).key.live_runs == 3
            shown = (await browser.get(answer.headers["location"])).text
            assert re.search(r'name="requests_per_second" value="0.5"', shown)
            assert re.search(r'name="stored_bytes" value=""', shown)
            await browser.submit("/limits", of=f"key:{row.id}", live_runs="")
            assert list((await all_of(app, ada.organization_id)).values()) == [LimitValues()]

    asyncio.run(flow())


NO_LIMITS = [
    {"live_runs": "many"},
    {"live_runs": "1.5"},
    {"requests_per_second": "nan"},
    {"requests_per_second": "inf"},
    {"stored_bytes": "-1"},
    {"stored_bytes": "9" * 30},
    {"of": "planet:earth"},
    {"of": ""},
]


def test_what_is_no_limit_is_refused_and_stays_in_the_form(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app:
            browser = await signed_in(app, settings)
            for given in NO_LIMITS:
                answer = await browser.submit("/limits", **{"of": "project:red"} | given)
                assert answer.status_code == 400
                name, text = next(iter(given.items()))
                assert f"{name}: " in answer.text
                assert name == "of" or f'value="{text}"' in answer.text
            assert await all_of(app, (await member(app)).organization_id) == {}

    asyncio.run(flow())


def test_a_key_of_another_organization_has_no_limits_here(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app:
            await signed_in(app, settings)
            eve, _ = await join(app, "eve@example.org", Role.OWNER, "other")
            row, _ = await make(app, await member(app))
            answer = await eve.submit("/limits", of=f"key:{row.id}", live_runs="0")
            assert answer.status_code == 404
            theirs = await member(app)
            answer = await eve.submit("/limits", of=f"organization:{theirs.organization_id}")
            assert answer.status_code == 404
            assert row.id not in (await eve.get(f"/limits?of=key:{row.id}")).text

    asyncio.run(flow())


def test_meters_tell_what_the_queue_counts(settings: Settings) -> None:
    async def flow() -> None:
        Queue(settings.redis_url, "announcer").announce([CARD])
        async with running(settings) as app:
            ada = await member(app)
            row, text = await make(app, ada)
            rates = {"requests_per_second": 0.01, "tokens_per_minute": 100}
            await agree(app, ada, Subject.KEY, row.id, live_runs=4, concurrent_samples=8, **rates)
            session = await use(app, ada, row.id, tokens=0)
            async with client(app, text) as http:
                await create_run(http, session)
            used = {
                one.limit: one.used for one in await meters(app.state.service, ada.organization_id)
            }
            assert (used["live_runs"], used["concurrent_samples"]) == (1, 0)
            assert used["requests_per_second"] == pytest.approx(1.0, abs=0.1)
            assert used["tokens_per_minute"] == pytest.approx(0.0, abs=1.0)

    asyncio.run(flow())


async def create_run(http: httpx.AsyncClient, session: str) -> None:
    body = {"session_id": session, "model_seq_id": 0, "base_model": "tiny"}
    made = await http.post("/create_model", json=body | {"lora_config": {"rank": 2}})
    assert made.status_code == 200, made.text


def test_four_fifths_of_a_month_are_told_to_admins_on_every_page(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app:
            browser = await signed_in(app, settings)
            viewer, _ = await join(app, "vi@example.org", Role.VIEWER)
            ada = await member(app)
            row, _ = await make(app, ada)
            await use(app, ada, row.id, tokens=79)
            for allowed, told in ((100, None), (98, "80 %"), (79, "100 %")):
                of = f"organization:{ada.organization_id}"
                await browser.submit("/limits", of=of, monthly_tokens=str(allowed))
                for path in ("/", "/keys"):
                    shown = (await browser.get(path)).text
                    assert ("Limits nearly reached" in shown) is (told is not None), allowed
                    assert told is None or f"has used {told} of its tokens a month" in shown
                assert "Limits nearly reached" not in (await viewer.get("/")).text
                assert (await viewer.get("/limits")).status_code == 403

    asyncio.run(flow())
