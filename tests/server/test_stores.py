"""Both ends of the object store, on a folder and over S3."""

import asyncio
import io
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tinsmith.protocol.errors import NotFound
from tinsmith_server.storage import Storage
from tinsmith_worker.store import FolderDamaged, Store, StoreUnavailable

from tests.s3 import BUCKET, S3Server, running_s3

FILES = {"weights": bytes(range(256)) * 5000, "empty": b"", "config": b"{}"}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(params=["folder", "s3"])
def store_url(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    if request.param == "folder":
        return str(tmp_path)
    for name, value in request.getfixturevalue("s3").environment.items():
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


def test_what_takes_more_than_one_request_arrives_whole(store_url: str) -> None:
    """12 MB: S3 takes it in three parts, however it is handed over."""
    data = random.Random(1).randbytes(12 << 20)
    store = Store(store_url)
    store.write_folder("large", {"at-once": data})
    pieces = (data[at : at + 1_000_000] for at in range(0, len(data), 1_000_000))
    assert store.stream_folder("larger", {"in-pieces": pieces}) == len(data)
    asyncio.run(Storage(store_url).write_folder("largest", {"from-a-file": io.BytesIO(data)}))
    found = [store.read_folder(prefix) for prefix in ("large", "larger", "largest")]
    assert found == [{"at-once": data}, {"in-pieces": data}, {"from-a-file": data}]


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


@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_whoever_does_not_know_the_secret_is_refused(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    for name, value in (s3.environment | {wrong: "guessed"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreUnavailable) as caught:
        Store(f"s3://{BUCKET}").write_folder("x", {"a": b"x"})
    said = {"AWS_ACCESS_KEY_ID": "InvalidAccessKeyId", "AWS_SECRET_ACCESS_KEY": "SignatureDoesNot"}
    assert said[wrong] in str(caught.value.__cause__)


def test_a_store_that_is_gone_is_told_in_time(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (s3.environment | {"AWS_ENDPOINT": "http://127.0.0.1:9"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreUnavailable):
        Store(f"s3://{BUCKET}").read_folder("x")
