"""Metrics by documented names, readiness that looks, request ids, and logs that hold no secret."""

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from tinsmith_server.accounts import members
from tinsmith_server.accounts.keys import KeyTerms
from tinsmith_server.accounts.keys import issue as issue_key
from tinsmith_server.metrics import Metrics
from tinsmith_server.settings import Settings

from tests.console.conftest import PASSWORD, URL, Browser, running, set_up
from tests.console.test_keys import client, make, member

ROOT = Path(__file__).parents[2]


def here(app: FastAPI, address: str = "127.0.0.1", **headers: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, client=(address, 1), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=URL, headers=headers)


def names() -> set[str]:
    """As they are told to Prometheus."""
    found = set()
    for family in Metrics().registry.collect():
        found.add(family.name + ("_total" if family.type == "counter" else ""))
    return found


def test_every_name_in_the_docs_the_dashboard_and_the_alerts_is_one_of_ours() -> None:
    ours = names()
    told = (ROOT / "docs" / "operations.md").read_text()
    assert set(re.findall(r"`(tinsmith_\w+)`", told)) == ours
    for name in ("alerts.yml", "grafana.json"):
        used = re.findall(r"tinsmith_\w+", (ROOT / "deploy" / name).read_text())
        assert len(used) > 5
        assert {re.sub("_(bucket|sum|count)$", "", one) for one in used} <= ours
    panels = json.loads((ROOT / "deploy" / "grafana.json").read_text())["panels"]
    shown = json.dumps(panels)
    assert [name for name in ours if name not in shown] == []


def test_requests_are_counted_by_pattern_and_status(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app:
            _, text = await make(app, await member(app))
            async with client(app, text) as http:
                await http.get("/sessions/sess-1")
                await http.post("/optim_step", content=b"{")
                await http.get("/no/such/place")
            async with here(app) as scraper:
                told = (await scraper.get("/metrics")).text
            for method, route, status in (
                ("GET", "/api/v1/sessions/{session_id}", 404),
                ("POST", "/api/v1/optim_step", 422),
                ("GET", "unmatched", 404),
            ):
                line = f'method="{method}",route="{route}",status="{status}"}} 1.0'
                assert line in told, told
            assert "sess-1" not in told
            assert 'tinsmith_part_up{part="redis"} 1.0' in told
            assert "tinsmith_queue_waiting" in told

    asyncio.run(flow())


def test_metrics_are_for_this_machine_or_for_who_has_the_token(settings: Settings) -> None:
    async def flow(token: str | None, expected: dict[str, int]) -> None:
        async with running(replace(settings, metrics_token=token)) as app:
            asked = {
                "here": here(app),
                "there": here(app, "10.0.0.9"),
                "proxied": here(app, **{"X-Forwarded-For": "10.0.0.9"}),
                "wrong": here(app, Authorization="Bearer wrong"),
                "right": here(app, "10.0.0.9", Authorization="Bearer scrape"),
            }
            got = {name: (await http.get("/metrics")).status_code for name, http in asked.items()}
            assert got == expected

    alone = {"here": 200, "there": 401, "proxied": 401, "wrong": 200, "right": 401}
    asyncio.run(flow(None, alone))
    by_token = {"here": 401, "there": 401, "proxied": 401, "wrong": 401, "right": 200}
    asyncio.run(flow("scrape", by_token))


def test_readiness_names_what_is_missing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from redis.exceptions import ConnectionError as RedisGone

    async def gone(*_: object, **__: object) -> None:
        raise RedisGone

    async def flow() -> None:
        async with running(settings) as app, here(app) as http:
            all_well = await http.get("/readyz")
            assert all_well.status_code == 200
            assert set(all_well.json().values()) == {"ok"}
            bus = app.state.service.bus
            monkeypatch.setattr(bus, "_heard_at", bus._heard_at - 60)
            lagging = await http.get("/readyz")
            assert (lagging.status_code, lagging.json()["redis"]) == (503, "ok")
            assert re.search(r"6\d s", lagging.json()["completions"])
            monkeypatch.setattr(bus.redis, "ping", gone)
            assert (await http.get("/readyz")).json()["redis"] == "unreachable"

    asyncio.run(flow())


def test_a_request_has_an_id_of_its_own_or_of_its_caller(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app, here(app) as http:
            ids = {(await http.get("/healthz")).headers["x-request-id"] for _ in range(3)}
            assert len(ids) == 3
            sent = await http.get("/healthz", headers={"X-Request-Id": "mine-1"})
            assert sent.headers["x-request-id"] == "mine-1"
            odd = await http.get("/healthz", headers={"X-Request-Id": "x" * 65})
            assert odd.headers["x-request-id"] != "x" * 65

    asyncio.run(flow())


def test_nothing_secret_is_ever_logged(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Everything that can go wrong with a secret in hand, and then a look at all that was said."""

    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no")

    figures: list[str] = []
    told: list[str] = []

    async def flow() -> list[str]:
        async with running(settings) as app, Browser(app) as browser:
            setup = members.setup_secret(settings.key_pepper)
            await set_up(browser, settings)
            _, key = await make(app, await member(app))
            cookie, csrf = browser.cookies["tinsmith"], await browser.token()
            await browser.post(
                "/sign-in", data={"email": "ada@example.org", "password": "wr0ng-one"}
            )
            for name, where in (
                ("future", app.state.service.bus),
                ("caller", app.state.service.keys),
            ):
                monkeypatch.setattr(where, name, broken)
            monkeypatch.setattr("tinsmith_server.accounts.sign_in.verified", broken)
            headers = {"X-API-Key": key}
            asked = {"request_id": f"{key}:1"}
            answers = [
                await browser.post("/api/v1/retrieve_future", json=asked, headers=headers),
                await browser.get(f"/api/v1/sessions/{key}", headers=headers),
                await browser.post(
                    "/sign-in", data={"email": "ada@example.org", "password": PASSWORD}
                ),
            ]
            assert [one.status_code for one in answers] == [500, 500, 500]
            told.extend(one.headers["x-request-id"] for one in answers)
            figures.append((await browser.get("/metrics")).text)
            return [setup, key.split("-")[2], cookie, csrf, PASSWORD, "wr0ng-one"]

    secrets = [*asyncio.run(flow()), settings.key_pepper.decode() + "'"]
    said = "".join(capfd.readouterr())
    assert said.count("internal_error") >= 3
    assert [one for one in secrets if one in said] == []
    errors = [json.loads(line) for line in said.splitlines() if "internal_error" in line]
    assert all(re.fullmatch(r"[0-9a-f]{16}", one["request_id"]) for one in errors)
    assert [one["request_id"] for one in errors] == told, "an answer's id finds its log line"
    counted = re.findall(r'requests_total\{.*status="500"\} (\d)', figures[0])
    assert counted == ["1"] * 3, "an answer that was never begun is counted too"


def test_a_key_in_a_message_is_struck_out() -> None:
    from tinsmith_server.logs import strike_out_keys

    secret = "0" * 72
    said = strike_out_keys(None, "", {"event": f"GET /keys/tml-0123456789ab-{secret} failed"})
    assert said["event"] == "GET /keys/tml-0123456789ab-*** failed"


def test_the_text_of_a_key_is_not_in_its_audit_entry(settings: Settings) -> None:
    from sqlalchemy import select
    from tinsmith_server.db import AuditEntry

    async def flow() -> None:
        async with running(settings) as app:
            ada = await member(app)
            async with app.state.service.db.begin() as sql:
                pepper, terms = settings.key_pepper, KeyTerms(name="x")
                _, text = await issue_key(sql, pepper, ada.organization_id, terms)
            async with app.state.service.db.begin() as sql:
                entries = (await sql.scalars(select(AuditEntry))).all()
            assert text.split("-")[2] not in str([entry.details for entry in entries])

    asyncio.run(flow())
