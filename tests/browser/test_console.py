"""The console's main ways, walked by a browser beside the official SDK. In order: each goes on from the last."""

import csv
import io
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import pytest
import tinker
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import AXE, EMAIL, PASSWORD, Watched
from tests.contract.conftest import BASE_MODEL, Service
from tests.contract.test_clients import datum

ADAM = tinker.AdamParams(learning_rate=1e-2)


@dataclass
class Story:
    """What an earlier test leaves for the later ones."""

    until_the_end: ExitStack
    key: str = ""
    key_id: str = ""
    client: tinker.ServiceClient | None = None
    run: tinker.TrainingClient | None = None
    checkpoint: str = ""

    @property
    def training(self) -> tinker.TrainingClient:
        assert self.run is not None, "these tests run in order"
        return self.run

    @property
    def run_id(self) -> str:
        return self.training.get_info().model_id


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    with suppress(tinker.AuthenticationError), ExitStack() as until_the_end:
        yield Story(until_the_end)  # whose client cannot say good-bye: its key is revoked by then


def train(run: tinker.TrainingClient, steps: int) -> None:
    for _ in range(steps):
        gradient = run.forward_backward([datum(tinker)], "cross_entropy")
        step = run.optim_step(ADAM)
        gradient.result(60)
        step.result(60)


def drawn(page: Page, column: str, points: int) -> None:
    plot = page.locator(f'.plot[data-column="{column}"]')
    expect(plot).to_have_attribute("data-points", str(points))


def test_a_key_is_made_in_the_dialog_that_the_sdk_links_to(watched: Watched, story: Story) -> None:
    page = watched.go("/keys?new_key=true&key_name=laptop")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_label("Name, such as")).to_have_value("laptop")
    dialog.get_by_role("button", name="Make the key").click()
    story.key = page.locator("#new-key-text").inner_text()
    assert f"export TINKER_API_KEY={story.key}" in page.locator("#new-key-export").inner_text()
    page.get_by_role("button", name="Copy").first.click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == story.key
    page.get_by_role("button", name="I have kept it").click()
    page.get_by_role("link", name="laptop").click()
    story.key_id = page.url.rsplit("/", 1)[1]
    assert story.key not in page.content(), "shown once"


def test_the_empty_overview_turns_when_the_first_request_arrives(
    watched: Watched, story: Story, service: Service
) -> None:
    page = watched.go("/")
    expect(page.get_by_text("Nothing has run here yet")).to_be_visible()
    expect(page.get_by_text("Healthy, idle")).to_be_visible()
    made = tinker.ServiceClient(
        base_url=service.url, api_key=story.key, user_metadata={"recipe": "sft"}
    )
    story.client = story.until_the_end.enter_context(made)
    story.run = story.client.create_lora_training_client(BASE_MODEL, rank=4)
    expect(page.get_by_text("Nothing has run here yet")).to_have_count(0)
    expect(page.locator("#overview-rest").get_by_text("train:0")).to_be_visible()


def test_a_runs_curve_moves_while_it_trains(watched: Watched, story: Story) -> None:
    page = watched.go(f"/training_runs/{story.run_id}")
    expect(page.get_by_text("Nothing to draw yet.").first).to_be_visible()
    train(story.training, 4)
    drawn(page, "loss", 4)
    train(story.training, 3)
    drawn(page, "loss", 7)
    drawn(page, "grad_norm", 7)
    drawn(page, "rate", 6)
    expect(page.locator("#run-head dd").nth(1)).to_contain_text("7")
    rows = page.locator("#run-rest details").first.locator("tbody tr")
    expect(rows).to_have_count(7)
    losses = [float(row.split("\t")[1]) for row in rows.all_inner_texts() or [] if "\t" in row]
    assert losses == sorted(losses), "newest first, and it learns"


def test_what_the_page_says_is_what_the_client_was_told(watched: Watched, story: Story) -> None:
    gradient = story.training.forward_backward([datum(tinker)], "cross_entropy")
    step = story.training.optim_step(ADAM)
    weights = sum(datum(tinker).loss_fn_inputs["weights"].to_numpy())
    loss = gradient.result(60).metrics["loss:sum"] / weights
    norm = (step.result(60).metrics or {})["grad_norm"]
    watched.go("/")
    said = watched.page.request.get(
        f"{watched.base_url}/training_runs/{story.run_id}/curves.json"
    ).json()
    assert said["loss"]["series"][0]["values"][-1] == pytest.approx(loss, rel=1e-5)
    assert said["grad_norm"]["series"][0]["values"][-1] == pytest.approx(norm, rel=1e-5)
    assert said["learning_rate"]["series"][0]["values"][-1] == 0.01


def test_two_runs_are_compared(watched: Watched, story: Story) -> None:
    assert story.client is not None
    other = story.client.create_lora_training_client(BASE_MODEL, rank=2)
    train(other, 3)
    page = watched.go("/training_runs")
    for box in page.get_by_role("checkbox").all():
        box.check()
    page.get_by_role("button", name="Compare their curves").click()
    expect(page.get_by_role("heading", name="Loss of 2 runs")).to_be_visible()
    expect(page.locator(".plot")).to_have_attribute("data-points", "8")
    page.get_by_label("Log x").check()
    expect(page.locator(".plot")).to_have_attribute("data-log-x", "1")


def test_a_checkpoint_is_published_kept_for_days_and_deleted(
    watched: Watched, story: Story
) -> None:
    for name in ("first", "second"):
        story.checkpoint = story.training.save_weights_for_sampler(name).result(60).path
    page = watched.go("/checkpoints")
    page.get_by_role("link", name="second").click()
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Publish").click()
    expect(page.get_by_role("button", name="Take back")).to_be_visible()
    page.get_by_label("Days from now").fill("3")
    page.get_by_role("button", name="Set").click()
    expect(page.get_by_text("in 2 d")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert download.value.path().stat().st_size > 1000
    page.goto(f"{watched.base_url}/checkpoints")
    page.get_by_label("Choose tinker://").last.check()
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("link", name="first")).to_have_count(0)
    expect(page.get_by_role("link", name="second")).to_be_visible()


def test_the_playground_answers_with_the_base_model_beside(watched: Watched, story: Story) -> None:
    page = watched.go(f"/playground?mode=checkpoint&checkpoint={story.checkpoint}")
    page.get_by_label("Prompt").fill("w5 w6 w7")
    page.get_by_label("Tokens at most").fill("6")
    page.get_by_role("button", name="Answer").click()
    expect(page.locator("#answers section")).to_have_count(2)
    token = page.locator("#answers .tok").first
    assert "log p -" in (token.get_attribute("title") or "")
    expect(page.locator("#answers section").nth(1)).to_contain_text(BASE_MODEL)
    page.locator("[name=mode]").select_option("chat")
    page.get_by_role("button", name="Answer").click()
    expect(page.get_by_role("alert").first).to_contain_text("chat template")


def test_usage_as_csv_is_what_the_page_and_the_api_say(
    watched: Watched, service: Service, story: Story
) -> None:
    page = watched.go("/usage")
    total = int(page.locator(".stats small").first.inner_text().replace(",", ""))
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
    assert sum(int(row["tokens"]) for row in rows) == total
    steps, each = 4 + 3 + 1 + 3, len(datum(tinker).model_input.to_ints())
    trained = [int(row["tokens"]) for row in rows if row["kind"] == "training"]
    assert sum(trained) == steps * each


def test_sessions_are_found_by_metadata(watched: Watched) -> None:
    page = watched.go("/sessions?q=recipe%3Dsft")
    expect(page.locator("tbody tr")).to_have_count(1)
    page = watched.go("/sessions?q=recipe%3Dother")
    expect(page.get_by_text("No session matches")).to_be_visible()


def test_a_revoked_key_is_refused_within_a_second(
    watched: Watched, story: Story, service: Service
) -> None:
    with service.http(story.key) as client:
        assert client.get("/training_runs").status_code == 200
        page = watched.go(f"/keys/{story.key_id}")
        page.on("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Revoke").click()
        expect(page.get_by_text("revoked")).to_be_visible()
        clicked = time.monotonic()
        while client.get("/training_runs").status_code != 401:
            assert time.monotonic() - clicked < 1.0
    with pytest.raises(tinker.AuthenticationError):
        story.training.forward_backward([datum(tinker)], "cross_entropy").result(30)


PAGES = [
    "/", "/training_runs", "/sessions", "/checkpoints", "/playground", "/keys", "/keys?new_key=true",
    "/usage", "/limits", "/projects", "/members", "/audit", "/operators", "/account", "/sign-in", "/nowhere",
]  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_any_page(watched: Watched, story: Story, scheme: str) -> None:
    """WCAG A and AA and best practices, with what lists link to; in the dark only colours differ."""
    page = watched.page
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    more = [f"/training_runs/{story.run_id}", f"/training_runs/compare?run={story.run_id}"]
    more.append(f"/sessions/{story.run_id.partition(':')[0]}")
    more.append(f"/checkpoints/{story.checkpoint.removeprefix('tinker://')}")
    asked = (
        "{resultTypes: ['violations']}" if scheme == "light" else "{runOnly: ['color-contrast']}"
    )
    found = []
    for path in PAGES + more:
        watched.go(path)
        page.evaluate(AXE.read_text())
        answer = page.evaluate(f"axe.run(document, {asked})")
        for one in answer["violations"]:
            found += [f"{path}: {one['id']}: {node['html'][:200]}" for node in one["nodes"]]
    watched.wrong = [said for said in watched.wrong if "404" not in said]  # /nowhere is one
    assert not found, "\n".join(found)


@pytest.mark.parametrize("width", [360, 768, 1280, 2560])
def test_no_page_is_wider_than_the_window_or_moves_when_it_comes_alive(
    watched: Watched, story: Story, width: int
) -> None:
    page = watched.page
    page.set_viewport_size({"width": width, "height": 900})
    page.add_init_script(
        "window.shift = 0; new PerformanceObserver(list => { for (const one of list.getEntries())"
        " if (!one.hadRecentInput) window.shift += one.value; }).observe({type: 'layout-shift', buffered: true});"
    )
    for path in ["/", "/training_runs", f"/training_runs/{story.run_id}", "/usage", "/playground"]:
        watched.go(path)
        if ".plot" in page.content():
            page.wait_for_function(
                "!document.querySelector('.plot') || document.querySelector('.u-wrap')"
            )
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        assert page.evaluate("window.shift") < 0.1, path


def test_light_and_dark_are_kept_and_the_menu_opens_on_a_phone(watched: Watched) -> None:
    page = watched.go("/")
    page.get_by_role("button", name="Light or dark").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    watched.go("/keys")
    assert page.evaluate("getComputedStyle(document.body).colorScheme") == "dark"
    page.get_by_role("button", name="Light or dark").click()
    page.set_viewport_size({"width": 390, "height": 844})
    menu = page.get_by_role("button", name="Menu")
    expect(page.get_by_role("link", name="Usage")).to_be_hidden()
    menu.click()
    expect(menu).to_have_attribute("aria-expanded", "true")
    page.get_by_role("link", name="Usage").click()
    expect(page.get_by_role("heading", name="Usage")).to_be_visible()


def test_the_keyboard_alone_reaches_the_content_and_the_dialog(watched: Watched) -> None:
    page = watched.go("/keys")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#content")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="New key")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_limits_are_agreed_on_metered_and_warned_of(watched: Watched) -> None:
    page = watched.go("/limits")
    page.get_by_label("Training runs at once", exact=True).fill("50")
    page.get_by_label("Tokens a month", exact=True).fill("0")
    page.get_by_role("button", name="Agree").click()
    expect(page.get_by_text("A limit is reached")).to_be_visible()
    expect(page.get_by_role("meter")).to_have_count(2)
    expect(page.get_by_role("meter", name="tokens a month")).to_have_attribute("value", "1.0")
    watched.go("/usage")
    expect(page.get_by_text("has used")).to_contain_text("100 % of its tokens a month")
    page.get_by_role("link", name="All limits").click()
    page.get_by_label("Tokens a month", exact=True).fill("")
    page.get_by_role("button", name="Agree").click()
    expect(page.get_by_text("A limit is reached")).to_have_count(0)
    expect(page.get_by_role("meter")).to_have_count(1)


def test_an_operator_drains_the_worker_and_takes_it_back(watched: Watched) -> None:
    page = watched.go("/operators")
    expect(page.get_by_text(" cores").first).to_be_visible()
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Drain").click()
    expect(page.get_by_text("drained", exact=True)).to_be_visible(timeout=30_000)
    watched.go("/")
    expect(page.get_by_text("No worker is up")).to_be_visible()
    watched.go("/operators")
    page.get_by_role("button", name="Take").click()
    expect(page.get_by_role("button", name="Drain")).to_be_visible(timeout=60_000)


def test_a_stranger_sees_the_door_alone(chromium: Browser, service: Service, story: Story) -> None:
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"{service.url}/training_runs/{story.run_id}")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert story.run_id not in page.locator("main").inner_text()
    page.get_by_label("E-mail").fill(EMAIL)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name=story.run_id)).to_be_visible()
    context.close()
