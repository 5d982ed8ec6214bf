"""A real Chromium before a whole service: what it must never do is watched on every page."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from tinsmith_server.accounts.members import setup_secret

from tests.conftest import running_valkey
from tests.contract.conftest import Service
from tests.contract.conftest import service as service

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-quic",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
]
EMAIL, PASSWORD = "ada@example.org", "correct horse battery"
AXE = Path(__file__).parent / "axe.min.js"
expect.set_options(timeout=15_000)


@dataclass
class Watched:
    """A page, what its console said, and what it asked of other hosts."""

    page: Page
    base_url: str
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        host = urlsplit(self.base_url).netloc
        self.page.on(
            "console",
            lambda said: (
                self.wrong.append(f"console: {said.text}") if said.type == "error" else None
            ),
        )
        self.page.on("pageerror", lambda error: self.wrong.append(f"script: {error}"))
        self.page.on(
            "request",
            lambda asked: (
                None
                if urlsplit(asked.url).netloc == host or asked.url.startswith("data:")
                else self.wrong.append(f"request: {asked.url}")
            ),
        )

    def go(self, path: str) -> Page:
        self.page.goto(self.base_url + path)
        return self.page


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its own: who serves which models is known there, and the contract tests' service is another."""
    with running_valkey(tmp_path_factory.mktemp("browser-valkey")) as url:
        yield url


def chromium_path() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    path = chromium_path()
    if path is None:
        sentence = "There is no Chromium here: apt-get install chromium."
        if os.environ.get("TINSMITH_NEEDS_CHROMIUM"):
            pytest.fail(sentence)
        pytest.skip(sentence)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def signed_in(chromium: Browser, service: Service) -> Iterator[BrowserContext]:
    """The first owner, by the link that the program prints."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    secret = setup_secret((service.data_dir / "key_pepper").read_bytes())
    page.goto(f"{service.url}/setup?token={secret}")
    page.get_by_label("Name").fill("Ada Lovelace")
    page.get_by_label("E-mail").fill(EMAIL)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Create the account").click()
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    page.close()
    yield context
    context.close()


@pytest.fixture
def watched(signed_in: BrowserContext, service: Service) -> Iterator[Watched]:
    """Nothing goes wrong in the console, and nothing is asked of another host."""
    page = signed_in.new_page()
    one = Watched(page, service.url)
    yield one
    page.close()
    assert one.wrong == []
