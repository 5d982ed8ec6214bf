"""What every test shares: one thread for torch, and a real Valkey."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TINKER_TELEMETRY", "0")

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tinsmith_server.embedded.process import stop_process
from tinsmith_server.embedded.valkey import start_valkey


@contextmanager
def running_valkey(folder: Path) -> Iterator[str]:
    process, url = start_valkey(folder, folder / "valkey.log")
    try:
        yield url
    finally:
        stop_process(process, 5)


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_valkey(tmp_path_factory.mktemp("valkey")) as url:
        yield url
