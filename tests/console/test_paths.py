"""Every route with a parameter in its path, asked for what no path should hold."""

import asyncio
from pathlib import Path
from urllib.parse import quote

import httpx
from fastapi import FastAPI
from tinsmith_server.settings import Settings

from tests.console.conftest import URL, running
from tests.console.route_table import SIGNED, Row, app_of, rows
from tests.console.tenants import each_client, populate

ODD = {
    "above": "%2e%2e",  # a client takes a plain one away
    "above, encoded": "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "above, encoded twice": "%252e%252e%252fetc%252fpasswd",
    "backslashes": "..%5c..%5cetc%5cpasswd",
    "absolute": "%2fetc%2fpasswd",
    "NUL": "a%00b",
    "overlong": "a" * 8000,
    "no UTF-8": "%ff%fe",
    "overlong UTF-8": "%c0%ae%c0%ae%c0%af",
    "a line break": "a%0d%0aSet-Cookie:%20x=y",
    "every sign": quote("';--<script>{}[]|$(id)`", safe=""),
}

_PEOPLE = {"viewer", "member", "admin", "owner"}
_DOORS = {"key:own": {"key", SIGNED}, "role:owner": _PEOPLE, "role:operator": {"operator"}}
_WHATEVER_THE_NAME = {"GET /m/{path_model:path}/v1/models"}
"""The list of models is the same below every name."""


def with_parameters(app: FastAPI) -> list[Row]:
    return [row for row in rows(app) if "{" in row.path]


def filled(path: str, odd: str) -> str:
    parts = [odd if part.startswith("{") else part for part in path.split("/")]
    return "/".join(parts)


def test_most_routes_are_asked(tmp_path: Path) -> None:
    assert len(with_parameters(app_of(tmp_path))) > 40


def test_an_odd_path_is_refused_and_breaks_nothing(settings: Settings) -> None:
    """By those who come through the door: owners, an operator, and a key for everything."""

    async def flow() -> list[str]:
        async with running(settings) as app:
            tenants, asked = await populate(app), with_parameters(app)
            wrong = []
            async for who, client in each_client(app, tenants):
                if who in ("key:own", "role:owner", "role:operator"):
                    async with client:
                        for row in asked:
                            if row.guard in _DOORS[who]:
                                wrong += await ask(client, row)
            return wrong

    wrong = asyncio.run(flow())
    assert not wrong, "\n".join(wrong)


async def ask(client: httpx.AsyncClient, row: Row) -> list[str]:
    wrong = []
    for name, odd in ODD.items():
        answer = await client.request(row.method, f"{URL}{filled(row.path, odd)}")
        broken = answer.status_code >= 500 or "root:" in answer.text
        opened = answer.is_success and row.name not in _WHATEVER_THE_NAME
        if broken or opened or "set-cookie" in answer.headers:
            wrong.append(f"{row.name}, {name} -> {answer.status_code}")
    return wrong
