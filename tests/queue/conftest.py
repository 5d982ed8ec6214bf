"""The queue's tests empty their Valkey, so they have one of their own."""

from collections.abc import Iterator

import pytest

from tests.conftest import running_valkey


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_valkey(tmp_path_factory.mktemp("queue-valkey")) as url:
        yield url
