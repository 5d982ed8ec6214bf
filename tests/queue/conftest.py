"""The queue's tests empty their Valkey, so they have one of their own."""

from collections.abc import Iterator

import pytest
from tinsmith_server.embedded.process import stop_process
from tinsmith_server.embedded.valkey import start_valkey


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("queue-valkey")
    process, url = start_valkey(folder, folder / "valkey.log")
    yield url
    stop_process(process, 5)
