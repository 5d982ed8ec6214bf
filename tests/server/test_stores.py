"""Both ends of the object store, on a folder and over S3."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tinsmith.protocol.errors import NotFound
from tinsmith_server.storage import Storage
from tinsmith_worker.store import FolderDamaged, Store, StoreUnavailable

from tests.server.s3_server import BUCKET, running_s3

FILES = {"weights": bytes(range(256)) * 5000, "empty": b"", "config": b"{}"}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with running_s3(tmp_path_factory.mktemp("s3")) as environment:
        yield environment


@pytest.fixture(params=["folder", "s3"])
def store_url(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    if request.param == "folder":
        return str(tmp_path)
    for name, value in request.getfixturevalue("s3").items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{tmp_path.name}"


def test_a_folder_is_whole_or_not_there(store_url: str) -> None:
    store = Store(store_url)
    assert not store.has_folder("a/b")
    with pytest.raises(FolderDamaged):
        store.read_folder("a/b")
    assert store.write_folder("a/b", FILES) == sum(len(data) for data in FILES.values())
    assert store.has_folder("a/b")
    assert store.read_folder("a/b") == FILES
    store.write_folder("a/bc", {"other": b"x"})
    store.delete_folder("a/b")
    assert not store.has_folder("a/b")
    assert store.read_folder("a/bc") == {"other": b"x"}


def test_what_a_worker_wrote_the_api_process_reads_copies_lists_and_deletes(store_url: str) -> None:
    Store(store_url).write_folder("checkpoints/one", FILES)

    async def flow() -> None:
        storage = Storage(store_url)
        assert await storage.names("checkpoints/one") == sorted(FILES)
        assert await storage.file("checkpoints/one", "weights") == FILES["weights"]
        with pytest.raises(NotFound):
            await storage.file("checkpoints/one", "manifest.json")
        size, pieces = await storage.stream("checkpoints/one", "weights")
        assert (size, b"".join([one async for one in pieces])) == (1_280_000, FILES["weights"])
        await storage.copy_folder("checkpoints/one", "checkpoints/two")
        assert set(await storage.folders("checkpoints")) == {"checkpoints/one", "checkpoints/two"}
        await storage.delete_folder("checkpoints/one")
        with pytest.raises(NotFound):
            await storage.names("checkpoints/one")

    asyncio.run(flow())
    assert Store(store_url).read_folder("checkpoints/two") == FILES


def test_an_unknown_key_is_refused_and_a_store_that_is_gone_is_told_in_time(
    s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (s3 | {"AWS_ACCESS_KEY_ID": "guessed"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreUnavailable):
        Store(f"s3://{BUCKET}").write_folder("x", {"a": b"x"})
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StoreUnavailable):
        Store(f"s3://{BUCKET}").read_folder("x")
