"""The console as a browser meets it: same origin, a cookie jar, forms with their token."""

import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from argon2 import PasswordHasher
from fastapi import FastAPI
from tinsmith_server.accounts import members, passwords
from tinsmith_server.accounts.organizations import organization_named
from tinsmith_server.accounts.roles import Role
from tinsmith_server.app import create_app
from tinsmith_server.migrate import migrate
from tinsmith_server.settings import Settings

URL = "http://127.0.0.1:8000"
PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same algorithm, without what makes it slow on purpose."""
    cheap = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr(passwords, "_hasher", cheap)


def settings_in(folder: Path, redis_url: str) -> Settings:
    return Settings(
        data_dir=folder,
        database_url=f"sqlite+aiosqlite:///{folder / 'tinsmith.db'}",
        redis_url=redis_url,
        store_url=str(folder / "store"),
        key_pepper=folder.name.encode(),
    )


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the newest schema, made once: a hundred statements that each wait for the disk."""
    folder = tmp_path_factory.mktemp("schema")
    migrate(settings_in(folder, "redis://nowhere"))
    return folder / "tinsmith.db"


@pytest.fixture
def settings(tmp_path: Path, valkey_url: str, empty_database: Path) -> Settings:
    shutil.copy(empty_database, tmp_path / "tinsmith.db")
    return settings_in(tmp_path, valkey_url)


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[FastAPI]:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        await app.state.service.bus.redis.delete(
            *await app.state.service.bus.redis.keys("signin:*"), "nothing"
        )
        yield app


class Browser(httpx.AsyncClient):
    """Says where its requests were made, as every browser does."""

    def __init__(self, app: FastAPI, url: str = URL) -> None:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        super().__init__(
            transport=transport, base_url=url, headers={"Sec-Fetch-Site": "same-origin"}
        )

    async def token(self) -> str:
        found = re.search(r'name="csrf_token" value="(\w+)"', (await self.get("/account")).text)
        assert found is not None
        return found[1]

    async def submit(self, path: str, **fields: str) -> httpx.Response:
        """A form of a page that is signed in."""
        return await self.post(path, data=fields | {"csrf_token": await self.token()})


async def set_up(browser: Browser, settings: Settings, email: str = "ada@example.org") -> None:
    """The first owner, signed in."""
    token = members.setup_secret(settings.key_pepper)
    form = {"token": token, "email": email, "name": "Ada", "password": PASSWORD}
    answer = await browser.post("/setup", data=form)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


async def join(
    app: FastAPI, email: str, role: Role, organization: str = "default", url: str = URL
) -> tuple[Browser, str]:
    """Somebody more, signed in, and the secret of the invitation that they came by."""
    async with app.state.service.db.begin() as sql:
        where = await organization_named(sql, organization)
        row, secret = members.invitation_to(where.id, role, None, None)
        sql.add(row)
    browser = Browser(app, url)
    form = {"token": secret, "email": email, "name": email, "password": PASSWORD}
    answer = await browser.post("/invitation", data=form)
    assert answer.status_code == 303, answer.text
    return browser, secret
