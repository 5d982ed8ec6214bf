"""The API process's end of the object store: it reads, copies and deletes whole folders."""

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, SupportsBytes
from urllib.parse import urlparse

import obstore
import structlog
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url
from tinsmith.protocol.errors import NotFound, Unavailable
from tinsmith.protocol.object_store import OUT_OF_REACH, access_options, refusal, wrong_setting
from tinsmith.protocol.store_layout import MANIFEST, PROBE

from tinsmith_server.settings import Settings, SettingsError

_log = structlog.get_logger()
_REFUSES = "The service's store refuses this just now (is it full?)."


class StoreUnavailable(Unavailable):
    """The store took or gave nothing. A client that asks again is told the same until somebody has mended it."""


class Storage:
    """Every method raises StoreUnavailable; NotFound where it says so."""

    def __init__(self, url: str) -> None:
        self._store = _open(url)

    def check(self) -> str | None:
        """What is wrong with the settings, if the store refuses us for one of them.

        A store that is out of reach, or full, is no reason not to begin.
        """
        if isinstance(self._store, LocalStore):
            return None
        try:
            next(iter(obstore.list(self._store, prefix=PROBE)), None)
            obstore.put(self._store, PROBE, b"")
        except (OSError, BaseError) as error:
            _log.warning("store_not_usable_yet", error=str(error)[:300])
            return wrong_setting(str(error))
        return None

    async def names(self, prefix: str) -> list[str]:
        """The files of a whole folder."""
        manifest = json.loads(await self._read(f"{prefix}/{MANIFEST}"))
        return sorted(manifest["files"])

    async def file(self, prefix: str, name: str) -> bytes:
        """Only a name that the folder's manifest lists is ever joined to it."""
        if name not in await self.names(prefix):
            raise NotFound(f"There is no file {name[:80]!r} here.")
        return await self._read(f"{prefix}/{name}")

    async def size(self, prefix: str, name: str) -> int:
        manifest = json.loads(await self._read(f"{prefix}/{MANIFEST}"))
        return int(manifest["files"][name]["size_bytes"])

    async def stream(self, prefix: str, name: str) -> tuple[int, AsyncIterator[bytes]]:
        """A file's size and its bytes in pieces, for what may be larger than memory is."""
        if name not in await self.names(prefix):
            raise NotFound(f"There is no file {name[:80]!r} here.")
        with _told():
            answer = await obstore.get_async(self._store, f"{prefix}/{name}")
        return answer.meta["size"], _as_bytes(answer.stream())

    async def copy_folder(self, source: str, target: str) -> None:
        """The manifest goes last: a folder half copied is not there yet."""
        names = [*await self.names(source), MANIFEST]
        with _told():
            for name in names:
                await obstore.copy_async(self._store, f"{source}/{name}", f"{target}/{name}")

    async def folders(self, prefix: str, depth: int = 1) -> dict[str, datetime]:
        """What lies so deep below the prefix, whole or not, and when it was last written to."""
        levels = prefix.count("/") + 1 + depth
        newest: dict[str, datetime] = {}
        with _told():
            async for batch in obstore.list(self._store, prefix=prefix):
                for entry in batch:
                    folder = "/".join(entry["path"].split("/")[:levels])
                    written = entry["last_modified"]
                    newest[folder] = max(newest.get(folder, written), written)
        return newest

    async def delete_folder(self, prefix: str) -> None:
        """The manifest goes first: a folder half deleted is already not there."""
        with _told():
            found = [
                entry["path"]
                async for batch in obstore.list(self._store, prefix=prefix)
                for entry in batch
            ]
            for path in sorted(found, key=lambda path: not path.endswith(MANIFEST)):
                await obstore.delete_async(self._store, path)

    async def write_folder(self, prefix: str, files: Mapping[str, BinaryIO]) -> int:
        """Read from where each file stands to its end; the manifest last. Answers the size."""
        entries: dict[str, dict[str, Any]] = {}
        for name, file in files.items():
            sha256, size = await asyncio.to_thread(_digest, file)
            with _told():
                await obstore.put_async(self._store, f"{prefix}/{name}", file)
            entries[name] = {"sha256": sha256, "size_bytes": size}
        manifest = json.dumps({"files": entries}).encode()
        with _told():
            await obstore.put_async(self._store, f"{prefix}/{MANIFEST}", manifest)
        return sum(entry["size_bytes"] for entry in entries.values())

    async def _read(self, path: str) -> bytes:
        with _told():
            answer = await obstore.get_async(self._store, path)
            return bytes(await answer.bytes_async())


@contextmanager
def _told() -> Iterator[None]:
    """The library's errors as ours. A bucket that is gone is no missing file."""
    try:
        yield
    except (OSError, BaseError) as error:
        if isinstance(error, FileNotFoundError) and not wrong_setting(str(error)):
            raise NotFound("These files are not in the store.") from None
        _log.error("store_unavailable", exc_info=error)
        raise StoreUnavailable(_REFUSES if refusal(str(error)) else OUT_OF_REACH) from error


def check_store(settings: Settings) -> None:
    """Raises SettingsError for a store that refuses us: better at the start than at the first save."""
    if wrong := Storage(settings.store_url).check():
        raise SettingsError(wrong)


def _digest(file: BinaryIO) -> tuple[str, int]:
    """Leaves the file where it stood."""
    start, sha256 = file.tell(), hashlib.sha256()
    while piece := file.read(1 << 20):
        sha256.update(piece)
    size = file.tell() - start
    file.seek(start)
    return sha256.hexdigest(), size


async def _as_bytes(stream: AsyncIterable[SupportsBytes]) -> AsyncIterator[bytes]:
    async for piece in stream:
        yield bytes(piece)


def _open(url: str) -> ObjectStore:
    if urlparse(url).scheme in ("", "file"):
        return LocalStore(Path(url.removeprefix("file://")), mkdir=True)
    return from_url(url, **access_options(os.environ))
