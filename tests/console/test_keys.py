"""Keys: what each is good for, where, until when; and that its end is heard everywhere."""

import asyncio
from datetime import timedelta

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import select
from tinsmith.protocol.errors import BadRequest, NotFound
from tinsmith.protocol.jobs import Job, Kind
from tinsmith_server.accounts import key_desk, keys
from tinsmith_server.accounts.caller import SignedIn
from tinsmith_server.accounts.keys import KeyTerms
from tinsmith_server.accounts.organizations import organization_named
from tinsmith_server.accounts.roles import Role
from tinsmith_server.accounts.scopes import Scope, parse_scopes
from tinsmith_server.db import ApiKey, now
from tinsmith_server.settings import Settings

from tests.console.conftest import URL, running


async def member(app: FastAPI, name: str = "ada", role: Role = Role.OWNER) -> SignedIn:
    """Somebody of the organization `default`, without a browser."""
    async with app.state.service.db.begin() as sql:
        where = await organization_named(sql, "default")
    return SignedIn(name, f"{name}@example.org", name, where.id, where.name, role, False)


def client(app: FastAPI, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app),
        base_url=f"{URL}/api/v1",
        headers={"X-API-Key": key},
    )


async def make(app: FastAPI, by: SignedIn, **terms: object) -> tuple[ApiKey, str]:
    given = KeyTerms(name="test", **terms)  # type: ignore[arg-type]
    return await key_desk.create_key(app.state.service, by, given)


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [
        ("all", {"read", "train", "sample", "manage", "admin"}),
        ("read", {"read"}),
        ("train", {"read", "train"}),
        ("sample", {"read", "sample"}),
        ("manage", {"read", "manage"}),
        ("admin", {"admin"}),
    ],
)
def test_a_key_reaches_as_far_as_its_scopes(
    settings: Settings, scopes: str, allowed: set[str]
) -> None:
    asked = {
        "read": ("GET", "/training_runs"),
        "train": ("POST", "/optim_step"),
        "sample": ("POST", "/asample"),
        "manage": ("DELETE", "/training_runs/sess-0:train:0/checkpoints/weights/n"),
        "admin": ("GET", "/audit"),
    }

    async def flow() -> None:
        async with running(settings) as app:
            given = parse_scopes(scopes.split(","))
            _, text = await make(app, await member(app), scopes=given)
            async with client(app, text) as http:
                for name, (method, path) in asked.items():
                    answer = await http.request(method, path)
                    assert (answer.status_code != 403) is (name in allowed), (name, answer.text)
                token = (await http.post("/auth/token")).json()["jwt"]
            async with client(app, token) as http:  # a token reaches no further than its key
                for name, (method, path) in asked.items():
                    answer = await http.request(method, path)
                    assert (answer.status_code != 403) is (name in allowed)

    asyncio.run(flow())


def test_a_key_of_one_project_sees_nothing_of_another(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app:
            ada = await member(app)
            texts = {
                name: (await make(app, ada, project_id=project))[1]
                for name, project in (("wide", None), ("red", "red"), ("blue", "blue"))
            }
            async with (
                client(app, texts["wide"]) as wide,
                client(app, texts["red"]) as red,
                client(app, texts["blue"]) as blue,
            ):
                made = await red.post("/create_session", json={})
                session = made.json()["session_id"]
                for http, seen in ((wide, [session]), (red, [session]), (blue, [])):
                    listed = (await http.get("/sessions")).json()["sessions"]
                    assert listed == seen
                    status = (await http.get(f"/sessions/{session}")).status_code
                    assert status == (200 if seen else 404)
                    found = (await http.post("/sessions/search", json={})).json()["sessions"]
                    assert len(found) == len(seen)
                for path, body in (
                    ("/session_heartbeat", {"session_id": session}),
                    (f"/sessions/{session}/finish", {}),
                ):
                    assert (await blue.post(path, json=body)).status_code == 404
                elsewhere = await red.post("/create_session", json={"project_id": "blue"})
                assert elsewhere.status_code == 400
                moved = await red.put(f"/sessions/{session}/project", json={"project_id": "blue"})
                assert moved.status_code == 400
                assert (await red.get("/audit")).status_code == 403

    asyncio.run(flow())


def test_a_key_of_one_project_cancels_nothing_of_another(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app:
            ada = await member(app)
            _, red = await make(app, ada, project_id="red")
            _, blue = await make(app, ada, project_id="blue")
            bus = app.state.service.bus
            async with client(app, red) as mine, client(app, blue) as theirs:
                session = (await mine.post("/create_session", json={})).json()["session_id"]
                sampler = f"{session}:sample:0"
                job = Job(
                    request_id=f"{sampler}:1", run_id=sampler, seq_id=1, kind=Kind.SAMPLE, body=b"x"
                )
                await bus.submit_sample(ada.organization_id, "no such model", job, 0)
                for http, cancelled in ((theirs, False), (mine, True)):
                    asked = await http.post("/cancel_future", json={"request_id": job.request_id})
                    assert (asked.status_code, asked.json()) == (200, {})
                    future = await bus.future(job.request_id)
                    assert (future.result is not None) is cancelled

    asyncio.run(flow())


def test_a_key_ends_when_it_was_to_end(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app:
            row, text = await make(app, await member(app), expires_at=now() + timedelta(hours=1))
            async with client(app, text) as http:
                assert (await http.get("/sessions")).status_code == 200
                token = (await http.post("/auth/token")).json()["jwt"]
                async with app.state.service.db.begin() as sql:
                    (await sql.get_one(ApiKey, row.id)).expires_at = now()
                app.state.service.keys.forget(row.id)
                assert (await http.get("/sessions")).status_code == 401
            async with client(app, token) as http:
                assert (await http.get("/sessions")).status_code == 401

    asyncio.run(flow())


def test_what_is_remembered_of_a_key_does_not_outlive_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def flow() -> None:
        async with running(settings) as app:
            _, text = await make(app, await member(app), expires_at=now() + timedelta(hours=1))
            async with client(app, text) as http:
                assert (await http.get("/sessions")).status_code == 200
                later = now().timestamp() + 3601
                monkeypatch.setattr("tinsmith_server.auth.time.time", lambda: later)
                assert (await http.get("/sessions")).status_code == 401

    asyncio.run(flow())


def test_a_rotated_key_goes_on_for_its_grace_and_both_are_the_same(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app:
            ada, service = await member(app), app.state.service
            old, old_text = await make(app, ada, project_id="red", note="laptop")
            new, new_text = await key_desk.rotate_key(service, ada, old.id, timedelta(hours=1))
            for text in (old_text, new_text):
                async with client(app, text) as http:
                    assert (await http.get("/sessions")).status_code == 200
            assert (new.project_id, new.note, new.scopes) == ("red", "laptop", "all")
            async with service.db.begin() as sql:
                ends = (await sql.get_one(ApiKey, old.id)).expires_at
            assert timedelta(minutes=59) < ends - now() <= timedelta(hours=1)
            await key_desk.rotate_key(service, ada, new.id, timedelta())
            async with client(app, new_text) as http:
                assert (await http.get("/sessions")).status_code == 401
            with pytest.raises(BadRequest, match="ended"):
                await key_desk.rotate_key(service, ada, new.id, timedelta())

    asyncio.run(flow())


def test_a_key_revoked_at_one_process_is_refused_at_all_within_a_second(
    settings: Settings,
) -> None:
    async def flow() -> None:
        async with running(settings) as here, running(settings) as there:
            ada = await member(here)
            row, text = await make(here, ada)
            async with client(there, text) as http:
                assert (await http.get("/sessions")).status_code == 200
                await key_desk.revoke_key(here.state.service, ada, row.id)
                async with asyncio.timeout(1):
                    while (await http.get("/sessions")).status_code != 401:
                        pass
            async with client(here, text) as http:
                assert (await http.get("/sessions")).status_code == 401

    asyncio.run(flow())


def test_members_handle_their_own_keys_and_admins_all(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app:
            service = app.state.service
            ada, bo = await member(app), await member(app, "bo", Role.MEMBER)
            hers, his = (await make(app, ada))[0], (await make(app, bo))[0]
            assert {row.id for row in await key_desk.list_keys(service, ada)} == {hers.id, his.id}
            assert [row.id for row in await key_desk.list_keys(service, bo)] == [his.id]
            with pytest.raises(NotFound):
                await key_desk.revoke_key(service, bo, hers.id)
            await key_desk.revoke_key(service, ada, his.id)

    asyncio.run(flow())


@pytest.mark.parametrize(
    ("field", "terms"),
    [
        ("name", KeyTerms(name=" ")),
        ("note", KeyTerms(name="x", note="n" * 501)),
        ("project_id", KeyTerms(name="x", project_id="no spaces")),
        ("expires_at", KeyTerms(name="x", expires_at=now() - timedelta(seconds=1))),
        ("scopes", KeyTerms(name="x", project_id="red", scopes=frozenset({Scope.ADMIN}))),
    ],
)
def test_terms_that_cannot_be_are_refused_by_name(field: str, terms: KeyTerms) -> None:
    with pytest.raises(BadRequest, match=f"^{field}:"):
        terms.check()


def test_the_database_holds_no_key(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app:
            _, text = await make(app, await member(app))
            async with app.state.service.db.begin() as sql:
                [row] = (await sql.scalars(select(ApiKey))).all()
                assert await keys.find(sql, settings.key_pepper, text) is row
                assert await keys.find(sql, b"another pepper", text) is None
            secret = text.split("-")[2]
            assert secret[:16] not in str(vars(row))

    asyncio.run(flow())
