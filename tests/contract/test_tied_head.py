"""A model whose unembedding is its embedding, and weights that leave it."""

import logging
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.conftest import running_valkey
from tests.contract.conftest import Service, running_service, save_tiny

TIED, UNTIED = "tied/llama", "untied/llama"


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    models = {
        TIED: save_tiny(folder / "tied", 0, tied=True),
        UNTIED: save_tiny(folder / "untied", 0),
    }
    with (
        running_valkey(folder) as valkey,
        running_service(folder, valkey, models, TINSMITH_MODEL_ALIASES="") as made,
    ):
        yield made


def test_an_export_that_cannot_be_merged_exactly_says_so(
    tinker: ModuleType, tied: Service, caplog: pytest.LogCaptureFixture
) -> None:
    said = {}
    for model, train_unembed in ((TIED, True), (TIED, False), (UNTIED, True)):
        caplog.clear()
        with (
            caplog.at_level(logging.WARNING),
            tinker.ServiceClient(base_url=tied.url, api_key=tied.api_key) as client,
        ):
            run = client.create_lora_training_client(
                model, rank=2, train_unembed=train_unembed
            ).result(60)
            assert run.save_weights_external("out").result(60).path
        said[model, train_unembed] = "--untie-unembedding" in caplog.text
    assert said == {(TIED, True): True, (TIED, False): False, (UNTIED, True): False}
