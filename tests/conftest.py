"""What every test shares: one thread for torch, and a real Valkey."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Iterator

import pytest
from tinsmith_server.embedded.process import stop_process
from tinsmith_server.embedded.valkey import start_valkey


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("valkey")
    process, url = start_valkey(folder, folder / "valkey.log")
    yield url
    stop_process(process, 5)
