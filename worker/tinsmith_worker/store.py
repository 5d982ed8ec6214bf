"""Folders of files in the object store: whole or not there.

A folder is written file by file and committed by its manifest, last. Reading checks every file
against the manifest, so a torn or altered folder is an error and never a model.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import obstore
import structlog
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url
from tinsmith.protocol.object_store import access_options, refusal, wrong_setting
from tinsmith.protocol.store_layout import MANIFEST, PROBE

_log = structlog.get_logger()


class FolderDamaged(Exception):
    """The folder has no manifest, or a file that differs from it."""


class StoreUnavailable(Exception):
    """The store took or gave nothing: it is out of reach, if not more is known."""


class StoreRefused(StoreUnavailable):
    """It was heard and would not: it is full, over its quota, or not ours."""


def open_store(url: str) -> ObjectStore:
    """A folder's path, or s3://, gs://, az:// with the usual environment."""
    if urlparse(url).scheme in ("", "file"):
        folder = Path(url.removeprefix("file://"))
        return LocalStore(folder, mkdir=True)
    return from_url(url, **access_options(os.environ))


class _Seen:
    """Pieces on their way, with what the manifest must know of them."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.sha256 = hashlib.sha256()
        self.size_bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self.sha256.update(piece)
            self.size_bytes += len(piece)
            yield piece


class Store:
    def __init__(self, url: str) -> None:
        self._store = open_store(url)

    def write_folder(self, prefix: str, files: dict[str, bytes]) -> int:
        """Write and commit; answers the folder's size in bytes."""
        manifest = {
            "files": {
                name: {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
                for name, data in files.items()
            }
        }
        with self._told(f"{prefix} could not be written"):
            for name, data in files.items():
                obstore.put(self._store, f"{prefix}/{name}", data)
            obstore.put(self._store, f"{prefix}/{MANIFEST}", json.dumps(manifest).encode())
        return sum(len(data) for data in files.values())

    def stream_folder(self, prefix: str, files: Mapping[str, Iterator[bytes]]) -> int:
        """The same for files larger than memory, each read once, in pieces."""
        entries: dict[str, dict[str, Any]] = {}
        with self._told(f"{prefix} could not be written"):
            for name, pieces in files.items():
                seen = _Seen(pieces)
                obstore.put(self._store, f"{prefix}/{name}", iter(seen))
                entries[name] = {"sha256": seen.sha256.hexdigest(), "size_bytes": seen.size_bytes}
            manifest = json.dumps({"files": entries}).encode()
            obstore.put(self._store, f"{prefix}/{MANIFEST}", manifest)
        return sum(entry["size_bytes"] for entry in entries.values())

    def read_folder(self, prefix: str) -> dict[str, bytes]:
        return self.read_files(prefix, None)

    def read_files(self, prefix: str, names: Collection[str] | None) -> dict[str, bytes]:
        """Some of a folder's files, those that it has of them; None: all."""
        try:
            with self._told(f"{prefix} could not be read"):
                manifest = json.loads(self._read(f"{prefix}/{MANIFEST}"))
                return {
                    name: self._verified(f"{prefix}/{name}", entry["sha256"])
                    for name, entry in manifest["files"].items()
                    if names is None or name in names
                }
        except (FileNotFoundError, ValueError, KeyError) as error:
            raise FolderDamaged(f"{prefix} is not whole in the store") from error

    def has_folder(self, prefix: str) -> bool:
        try:
            with self._told(f"{prefix} could not be looked for"):
                obstore.head(self._store, f"{prefix}/{MANIFEST}")
        except FileNotFoundError:
            return False
        return True

    def delete_folder(self, prefix: str) -> None:
        """The manifest goes first: a folder half deleted is already not there."""
        with self._told(f"{prefix} could not be deleted"):
            batches = obstore.list(self._store, prefix=prefix)
            paths = [entry["path"] for batch in batches for entry in batch]
            for path in sorted(paths, key=lambda path: not path.endswith(MANIFEST)):
                obstore.delete(self._store, path)

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

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """The library's errors as ours. That something is not there is for whoever reads to judge."""
        try:
            yield
        except (OSError, BaseError) as error:
            if isinstance(error, FileNotFoundError) and not wrong_setting(str(error)):
                raise
            refused = refusal(str(error))
            of_a_folder = isinstance(self._store, LocalStore)
            kind = StoreRefused if refused or of_a_folder else StoreUnavailable
            raise kind(f"{what} ({refused or 'no answer'})") from error

    def _read(self, path: str) -> bytes:
        return bytes(obstore.get(self._store, path).bytes())

    def _verified(self, path: str, sha256: str) -> bytes:
        data = self._read(path)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise FolderDamaged(f"{path} differs from its manifest")
        return data
