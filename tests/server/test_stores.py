"""Both ends of the object store, on a folder and over S3."""

import asyncio
import errno
import io
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tinsmith.protocol.errors import NotFound, Unavailable
from tinsmith_server.storage import Storage
from tinsmith_worker.store import FolderDamaged, Store, StoreRefused, StoreUnavailable

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


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AWS_ACCESS_KEY_ID", "guessed", "AWS_ACCESS_KEY_ID: the store does not know this key."),
        ("AWS_SECRET_ACCESS_KEY", "guessed", "AWS_SECRET_ACCESS_KEY: it does not belong to"),
        (
            "TINSMITH_STORE_URL",
            "s3://no-such-bucket",
            "TINSMITH_STORE_URL: the store has no bucket",
        ),
        ("AWS_ALLOW_HTTP", "false", "AWS_ENDPOINT: it is http and not https"),
    ],
)
def test_a_store_that_refuses_us_is_told_by_the_setting_that_is_wrong(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    environment = s3.environment | {"TINSMITH_STORE_URL": f"s3://{BUCKET}"}
    for key, given in (environment | {name: value}).items():
        monkeypatch.setenv(key, given)
    url = os.environ["TINSMITH_STORE_URL"]
    for wrong in (Store(url).check(), Storage(url).check()):
        assert wrong is not None
        assert wrong.startswith(said)
    with pytest.raises(StoreUnavailable):
        Store(url).write_folder("x", {"a": b"x"})
    with pytest.raises(StoreUnavailable):  # and not taken for a folder that is not there
        Store(url).read_folder("x")


def test_both_ends_refuse_to_start_on_a_store_that_refuses_them(
    s3: S3Server, tmp_path: Path
) -> None:
    environment = os.environ | s3.environment | {"AWS_SECRET_ACCESS_KEY": "guessed"}
    environment |= {
        "TINSMITH_DATA_DIR": str(tmp_path),
        "TINSMITH_STORE_URL": f"s3://{BUCKET}",
        "TINSMITH_REDIS_URL": "redis://127.0.0.1:9",
        "TINSMITH_MODELS": f"none={tmp_path}",
    }
    for command in (["tinsmith_server.cli", "serve"], ["tinsmith_worker"]):
        ended = subprocess.run(
            [sys.executable, "-m", *command], env=environment, capture_output=True, text=True
        )
        assert ended.returncode in (1, 2)
        last = " ".join(ended.stderr.splitlines()[-1:])
        assert "AWS_SECRET_ACCESS_KEY: it does not belong to AWS_ACCESS_KEY_ID." in last, command


_REGION_ANSWERS = [
    (
        400,
        "<Error><Code>AuthorizationHeaderMalformed</Code><Message>The authorization header is "
        "malformed; the region 'us-east-1' is wrong; expecting 'eu-west-1'</Message>"
        "<Region>eu-west-1</Region></Error>",
    ),
    (301, "<Error><Code>PermanentRedirect</Code><Endpoint>b.s3.eu-west-1</Endpoint></Error>"),
]
_QUOTA = "<Error><Code>QuotaExceeded</Code></Error>"  # Ceph's, with 403
_FULL = "<Error><Code>XMinioStorageFull</Code></Error>"  # MinIO's, with 507


@contextmanager
def answering(status: int, body: str) -> Iterator[dict[str, str]]:
    """A server that says one thing: answers of stores that cannot be had here."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_PUT = do_POST = _answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        port = server.server_address[1]
        yield {
            "AWS_ENDPOINT": f"http://127.0.0.1:{port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "k",
            "AWS_SECRET_ACCESS_KEY": "s",
        }
        server.shutdown()


@pytest.mark.parametrize(("status", "body"), _REGION_ANSWERS)
def test_a_bucket_of_another_region_is_told(
    monkeypatch: pytest.MonkeyPatch, status: int, body: str
) -> None:
    with answering(status, body) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        wrong = Store("s3://elsewhere").check()
    assert wrong is not None
    assert wrong.startswith("AWS_REGION: the bucket is in another region")


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (403, _QUOTA, StoreRefused),
        (507, _FULL, StoreRefused),
        (500, "", StoreUnavailable),
        (503, "<Error><Code>SlowDown</Code></Error>", StoreUnavailable),
    ],
)
def test_a_full_store_is_no_store_that_is_away(
    monkeypatch: pytest.MonkeyPatch, status: int, body: str, kind: type[Exception]
) -> None:
    with answering(status, body) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        store = Store("s3://full")
        with pytest.raises(StoreUnavailable) as caught:
            store.write_folder("x", {"a": b"x"})
        assert type(caught.value) is kind
        assert store.check() is None  # no reason not to start: what is there can be read


def test_a_store_that_is_gone_is_told_in_time_and_is_no_reason_not_to_start(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (s3.environment | {"AWS_ENDPOINT": "http://127.0.0.1:9"}).items():
        monkeypatch.setenv(name, value)
    url = f"s3://{BUCKET}"
    with pytest.raises(StoreUnavailable) as caught:
        Store(url).read_folder("x")
    assert not isinstance(caught.value, StoreRefused)
    assert Store(url).check() is Storage(url).check() is None
    with pytest.raises(Unavailable, match="out of reach"):
        asyncio.run(Storage(url).names("x"))


def test_a_full_folder_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("obstore.put", full)
    with pytest.raises(StoreRefused):
        Store(str(tmp_path)).write_folder("x", {"a": b"x"})
