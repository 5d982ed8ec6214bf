"""Two organizations, and in the first one of everything, each thing with a word that nobody else may read."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI
from tinsmith.protocol.paths import run_id
from tinsmith_server.accounts import key_desk, members, projects
from tinsmith_server.accounts.caller import SignedIn
from tinsmith_server.accounts.keys import KeyTerms
from tinsmith_server.accounts.roles import Role
from tinsmith_server.accounts.sign_in import signed_in
from tinsmith_server.db import Checkpoint, SamplingSession, Session, TrainingRun

from tests.console.conftest import URL, Browser, join

SECRET = "marmalade"
SESSION = "sess-00000000000000000001"
RUN = run_id(SESSION, 0)


class FirstBytes(httpx.AsyncBaseTransport):
    """Like httpx's own, but an answer that never ends (events, as they come) is cut after its head."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": request.method,
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "scheme": request.url.scheme,
            "path": request.url.path,
            "raw_path": request.url.raw_path.split(b"?")[0],
            "query_string": request.url.query,
            "server": (request.url.host, request.url.port),
            "client": ("127.0.0.1", 1),
            "root_path": "",
        }
        head: dict[str, Any] = {}
        pieces: list[bytes] = []
        done, given = asyncio.Event(), iter([{"type": "http.request", "body": body}])

        async def receive() -> dict[str, Any]:
            message = next(given, None)
            if message is None:
                await done.wait()
                return {"type": "http.disconnect"}
            return message

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                head.update(message)
                if b"event-stream" in dict(message["headers"]).get(b"content-type", b""):
                    done.set()
            else:
                pieces.append(message.get("body", b""))
                if not message.get("more_body"):
                    done.set()

        task = asyncio.create_task(self._app(scope, receive, send))
        waiting = asyncio.create_task(done.wait())
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        task.cancel()
        waiting.cancel()
        await asyncio.gather(task, waiting, return_exceptions=True)
        if not head:
            return httpx.Response(500, request=request)
        return httpx.Response(
            head["status"], headers=head["headers"], content=b"".join(pieces), request=request
        )


@dataclass
class Tenants:
    names: dict[str, str]
    """What stands in a path in place of each parameter: things of the first organization."""
    keys: dict[str, str]
    """`own`, `other` organization, `revoked`, `elsewhere` (another project of the same one)."""
    cookies: dict[str, httpx.Cookies]
    """Of each role in the first organization, of an `operator` of the other, and its `other` owner."""
    tokens: dict[str, str]
    """The CSRF tokens that belong to these cookies."""


async def populate(app: FastAPI) -> Tenants:
    service = app.state.service
    browsers = {
        role.label: (await join(app, f"{role.label}@example.org", role))[0] for role in Role
    }
    browsers["other"] = (await join(app, "eve@example.org", Role.OWNER, "other"))[0]
    browsers["operator"] = (await join(app, "op@example.org", Role.VIEWER, "third"))[0]
    async with service.db.begin() as sql:
        operator = await members.user_of(sql, "op@example.org")
        assert operator is not None
        operator.operator = True
    owner, eve = await who(app, browsers["owner"]), await who(app, browsers["other"])
    row, own = await key_desk.create_key(service, owner, KeyTerms(name=f"{SECRET} key"))
    gone, revoked = await key_desk.create_key(service, owner, KeyTerms(name="gone"))
    await key_desk.revoke_key(service, owner, gone.id)
    _, other = await key_desk.create_key(service, eve, KeyTerms(name="eve's"))
    terms = KeyTerms(name="elsewhere", project_id="elsewhere")
    _, elsewhere = await key_desk.create_key(service, owner, terms)
    grace, _ = await join(app, "grace@example.org", Role.MEMBER)  # whom an admin may remove
    user = await who(app, grace)
    names = {"key_id": row.id, "user_id": user.user_id} | await _things(app, owner)
    return Tenants(
        names,
        {"own": own, "other": other, "revoked": revoked, "elsewhere": elsewhere},
        {name: browser.cookies for name, browser in browsers.items()},
        {name: await browser.token() for name, browser in browsers.items()},
    )


async def who(app: FastAPI, browser: Browser) -> SignedIn:
    async with app.state.service.db.begin() as sql:
        found = await signed_in(sql, browser.cookies["tinsmith"])
    assert found is not None
    return found


async def _things(app: FastAPI, owner: SignedIn) -> dict[str, str]:
    org = {"organization_id": owner.organization_id}
    lora = {"lora_rank": 2, "train_attn": True, "train_mlp": True, "train_unembed": True}
    note = {"user_metadata": {"note": SECRET}}
    async with app.state.service.db.begin() as sql:
        await projects.create_project(sql, owner, "jam", SECRET)
        invitation, _ = await members.invite(sql, owner, Role.VIEWER, f"{SECRET}@example.org")
        sql.add(
            Session(
                id=SESSION, project_id="jam", display_name=SECRET, sdk_version="0", **org, **note
            )
        )
        await sql.flush()
        sql.add(TrainingRun(id=RUN, session_id=SESSION, base_model="tiny", **org, **lora, **note))
        await sql.flush()
        sql.add(
            Checkpoint(
                id="c" * 32, run_id=RUN, request_id=f"{RUN}:1", kind="weights", name="saved",
                ready=True, size_bytes=1, **org, **note,
            )
        )  # fmt: skip
        sql.add(
            SamplingSession(
                id=f"{SESSION}:sample:0", session_id=SESSION, base_model="tiny", **org,
                model_path=f"tinker://{RUN}/weights/{SECRET}",
            )
        )  # fmt: skip
    return {
        "session_id": SESSION,
        "run_id": RUN,
        "kind": "weights",
        "name": "saved",
        "checkpoint_id": "weights/saved",
        "sampler_id": f"{SESSION}:sample:0",
        "project_id": "jam",
        "invitation_id": invitation.id,
        "job_id": "0" * 32,
        "worker_id": "nobody",
        "digest": "0" * 16,
        "path_model": f"tinker://{RUN}/weights/saved",
        "rest": "nothing",
    }


async def each_client(
    app: FastAPI, tenants: Tenants
) -> AsyncIterator[tuple[str, httpx.AsyncClient]]:
    """Everybody by name: `nobody`, `key:...`, `role:...`."""

    def client(**more: Any) -> httpx.AsyncClient:
        headers = {"Sec-Fetch-Site": "same-origin"} | more.pop("headers", {})
        return httpx.AsyncClient(
            transport=FirstBytes(app), base_url=URL, headers=headers, timeout=10, **more
        )

    yield "nobody", client()
    for name, text in tenants.keys.items():
        yield f"key:{name}", client(headers={"X-API-Key": text})
    for name, cookies in tenants.cookies.items():
        token = {"X-CSRF-Token": tenants.tokens[name]}
        yield f"role:{name}", client(cookies=cookies, headers=token)
