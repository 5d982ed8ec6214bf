"""Every route of the app as everybody who should not come in, and as those who should."""

import asyncio
import re
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from tinsmith_server.accounts.roles import Role
from tinsmith_server.settings import Settings

from tests.console.conftest import running
from tests.console.route_table import SIGNED, Row, app_of, rows, table, written
from tests.console.tenants import SECRET, Tenants, each_client, populate

_ROLES = [role.label for role in Role]
_LEAVES = {
    "POST /sign-out",
    "POST /account/password",
    "DELETE /api/v1/auth/apikey/me",
    "POST /account/leave",
}
"""Whoever calls these is gone afterwards: they are walked by those who may not, and tested by themselves."""


def test_every_route_says_whom_it_is_for(tmp_path: Path) -> None:
    found = rows(app_of(tmp_path))
    assert [row.name for row in found if not row.guard] == []
    assert len(found) > 100


def test_the_page_has_the_table_of_this_app(tmp_path: Path) -> None:
    assert written() == table(rows(app_of(tmp_path)))


def test_no_route_is_for_unrestricted_keys_by_mistake(tmp_path: Path) -> None:
    unlisted = [row.name for row in rows(app_of(tmp_path)) if row.scopes == "all"]
    assert unlisted == [], "say in accounts/scopes.py what these are for"


def test_nobody_gets_what_is_not_theirs_and_everybody_what_is(settings: Settings) -> None:
    async def flow() -> list[str]:
        async with running(settings) as app:
            tenants = await populate(app)
            found = rows(app)
            wrong = []
            async for name, client in each_client(app, tenants):
                async with client:
                    for row in found:
                        wrong += await walk(row, name, client, tenants)
            return wrong + await mutations(app, tenants)

    wrong = asyncio.run(flow())
    assert not wrong, "\n".join(wrong)


async def walk(row: Row, who: str, client: httpx.AsyncClient, tenants: Tenants) -> list[str]:
    kind, _, name = who.partition(":")
    if row.name in _LEAVES and not shut_out(row, kind, name):
        return []
    path = filled(row.path, tenants.names)
    if allowed(row, kind, name) and row.method != "GET":
        return []  # what changes things is tried last, by `mutations`
    answer = await client.request(row.method, path, json=None if row.method == "GET" else {})
    said = f"{who}: {row.name} -> {answer.status_code}"
    if shut_out(row, kind, name):
        refused = (401, 403, 404, 422) if row.guard == SIGNED else (401, 403, 404)
        right = answer.status_code in refused or (
            answer.status_code == 303 and answer.headers["location"].startswith("/sign-in")
        )
        return [] if right and SECRET not in answer.text else [f"{said}: not shut out"]
    if stranger(kind, name):
        leaked = SECRET in answer.text
        of_theirs = "{" in row.path and row.guard not in ("anybody", SIGNED)
        open_door = of_theirs and answer.is_success and "static" not in row.path
        return [f"{said}: a stranger's view"] if leaked or (open_door and theirs(row)) else []
    if row.guard not in ("key", "operator", *_ROLES):
        return [f"{said}: broken"] if answer.status_code >= 500 else []
    if answer.status_code in (401, 403) or "/sign-in" in answer.headers.get("location", ""):
        return [f"{said}: shut out by mistake"]
    return [f"{said}: broken"] if answer.status_code >= 500 and row.guard != "key" else []


def shut_out(row: Row, kind: str, name: str) -> bool:
    """Whether the door itself is closed to them."""
    if row.guard == "key":
        return kind != "key" or name == "revoked" or (name == "elsewhere" and row.scopes == "admin")
    if row.guard in _ROLES:
        if kind != "role":
            return True
        has = {"other": "owner", "operator": "viewer"}.get(name, name)
        return _ROLES.index(has) < _ROLES.index(row.guard)
    if row.guard == "operator":
        return (kind, name) != ("role", "operator")
    return row.guard == SIGNED


def stranger(kind: str, name: str) -> bool:
    """Of another organization or project, or nobody."""
    return kind == "nobody" or name in ("other", "operator", "elsewhere", "revoked")


def allowed(row: Row, kind: str, name: str) -> bool:
    return not shut_out(row, kind, name) and not stranger(kind, name)


def theirs(row: Row) -> bool:
    """Whether the path names a thing that belongs to somebody."""
    return bool(
        re.search(r"\{(session|run|checkpoint|sampler|project|invitation|key|user)_id", row.path)
    )


def filled(path: str, names: dict[str, str]) -> str:
    """A parameter that is not known here fails: say in tenants.py what stands in its place."""
    return re.sub(r"\{(\w+)(:path)?\}", lambda found: names[found[1]], path)


async def mutations(app: FastAPI, tenants: Tenants) -> list[str]:
    """By the rightful ones: the door is open (whatever they find wrong with an empty form)."""
    wrong = []
    clients = {name: client async for name, client in each_client(app, tenants)}
    for row in rows(app):
        if row.method == "GET" or row.name in _LEAVES or row.guard not in (*_ROLES, "operator"):
            continue
        name = "operator" if row.guard == "operator" else row.guard
        answer = await clients[f"role:{name}"].request(
            row.method, filled(row.path, tenants.names), data={"nothing": "1"}
        )
        if answer.status_code in (401, 403) or answer.status_code >= 500:
            wrong.append(f"{name}: {row.name} -> {answer.status_code}: shut out by mistake")
    return wrong


def test_a_route_without_a_guard_would_be_found(tmp_path: Path) -> None:
    app = app_of(tmp_path)
    app.add_api_route("/everything", lambda: "all there is")
    assert [row.name for row in rows(app) if not row.guard] == ["GET /everything"]


@pytest.mark.parametrize("row", [Row("GET", "/x", "admin"), Row("GET", "/x", "key", "read")])
def test_the_walk_would_find_an_open_door(row: Row) -> None:
    tenants = Tenants({}, {}, {}, {})

    async def flow() -> list[str]:
        transport = httpx.MockTransport(lambda _: httpx.Response(200, text="everything"))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await walk(row, "nobody", client, tenants)

    assert asyncio.run(flow()) == ["nobody: GET /x -> 200: not shut out"]
