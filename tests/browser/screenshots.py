"""docs/images: pages of a service that trains, light and dark, wide and narrow. `make screenshots`."""

import math
import random
import tempfile
from pathlib import Path

import tinker
from playwright.sync_api import Page, expect, sync_playwright
from tinsmith_server.accounts.members import setup_secret

from tests.browser.conftest import ARGUMENTS, EMAIL, PASSWORD, chromium_path
from tests.conftest import running_valkey
from tests.contract.conftest import BASE_MODEL, Service, running_service, save_tiny

IMAGES = Path(__file__).parents[2] / "docs" / "images"
_STEPS = 80


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            running_valkey(folder) as valkey,
            running_service(folder, valkey, {BASE_MODEL: save_tiny(folder / "tiny", 0)}) as service,
        ):
            _shoot(service)


def _shoot(service: Service) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 860}, color_scheme="light")
        _enter(page, service)
        key = service.new_key("default")
        with tinker.ServiceClient(base_url=service.url, api_key=key, project_id="poems") as client:
            runs = [_trained(client, rank) for rank in (4, 8, 16)]
            path = runs[0].save_weights_for_sampler("final").result(60).path
            page.goto(f"{service.url}/")
            _drawn(page)
            _keep(page, "overview.png")
            page.emulate_media(color_scheme="dark")
            page.goto(f"{service.url}/training_runs/{runs[0].get_info().model_id}")
            _drawn(page)
            _keep(page, "run.png", height=1000)
            page.set_viewport_size({"width": 390, "height": 844})
            _keep(page, "phone.png")
        page.set_viewport_size({"width": 1100, "height": 844})
        page.emulate_media(color_scheme="light")
        page.goto(f"{service.url}/playground?mode=checkpoint&checkpoint={path}")
        page.get_by_label("Prompt").fill("w5 w6 w7")
        page.get_by_label("Tokens at most").fill("24")
        page.get_by_role("button", name="Answer").click()
        expect(page.locator("#answers section")).to_have_count(2)
        _keep(page, "playground.png")
        browser.close()


def _enter(page: Page, service: Service) -> None:
    secret = setup_secret((service.data_dir / "key_pepper").read_bytes())
    page.goto(f"{service.url}/setup?token={secret}")
    page.get_by_label("Name").fill("Ada Lovelace")
    page.get_by_label("E-mail").fill(EMAIL)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Create the account").click()
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()


def _trained(client: tinker.ServiceClient, rank: int) -> tinker.TrainingClient:
    """On noisy sequences, so that the curve is one that people know."""
    run = client.create_lora_training_client(
        BASE_MODEL, rank=rank, user_metadata={"rank": str(rank)}
    )
    draw = random.Random(rank)
    for step in range(_STEPS):
        data = [
            _datum([(5 * at + draw.choice((0, 0, 0, 1))) % 90 + 3 for at in range(24)])
            for _ in range(2)
        ]
        rate = 1e-2 * min(1.0, (step + 1) / 10) * (0.55 + 0.45 * math.cos(math.pi * step / _STEPS))
        gradient = run.forward_backward(data, "cross_entropy")
        taken = run.optim_step(tinker.AdamParams(learning_rate=rate))
        gradient.result(60)
        taken.result(60)
    return run


def _datum(tokens: list[int]) -> tinker.Datum:
    length = len(tokens) - 1
    inputs = {"target_tokens": tokens[1:], "weights": [1.0] * length}
    return tinker.Datum(model_input=tinker.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)


def _drawn(page: Page) -> None:
    page.wait_for_function("document.querySelector('.plot .u-wrap')")


def _keep(page: Page, name: str, height: int | None = None) -> None:
    IMAGES.mkdir(exist_ok=True)
    size = page.viewport_size
    if height and size:
        page.set_viewport_size({"width": size["width"], "height": height})
        _drawn(page)
    page.screenshot(path=IMAGES / name)


if __name__ == "__main__":
    main()
