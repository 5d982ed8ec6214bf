"""Folders of files in the object store: whole or not there.

A folder is written file by file and committed by its manifest, last. Reading checks every file
against the manifest, so a torn or altered folder is an error and never a model.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url
from tinsmith.protocol.store_layout import MANIFEST

OUT_OF_REACH = "The service's store is out of reach just now."
_RETRIES: Any = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=10),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=2),
        "base": 2,
    },
}
"""Of one request. Whoever asked for a folder asks for it again; minutes in here would hide an outage."""


class FolderDamaged(Exception):
    """The folder has no manifest, or a file that differs from it."""


def open_store(url: str) -> ObjectStore:
    """A folder's path, or s3://, gs://, az:// with the usual environment."""
    if urlparse(url).scheme in ("", "file"):
        folder = Path(url.removeprefix("file://"))
        return LocalStore(folder, mkdir=True)
    return from_url(url, retry_config=_RETRIES)


class StoreUnavailable(Exception):
    """The store took or gave nothing: full, unreachable, or forbidden."""


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
        try:
            return self._write_folder(prefix, files)
        except (OSError, BaseError) as error:
            raise StoreUnavailable(f"{prefix} could not be written") from error

    def _write_folder(self, prefix: str, files: dict[str, bytes]) -> int:
        for name, data in files.items():
            obstore.put(self._store, f"{prefix}/{name}", data)
        manifest = {
            "files": {
                name: {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
                for name, data in files.items()
            }
        }
        obstore.put(self._store, f"{prefix}/{MANIFEST}", json.dumps(manifest).encode())
        return sum(len(data) for data in files.values())

    def stream_folder(self, prefix: str, files: Mapping[str, Iterator[bytes]]) -> int:
        """The same for files larger than memory, each read once, in pieces."""
        entries: dict[str, dict[str, Any]] = {}
        try:
            for name, pieces in files.items():
                seen = _Seen(pieces)
                obstore.put(self._store, f"{prefix}/{name}", iter(seen))
                entries[name] = {"sha256": seen.sha256.hexdigest(), "size_bytes": seen.size_bytes}
            obstore.put(
                self._store, f"{prefix}/{MANIFEST}", json.dumps({"files": entries}).encode()
            )
        except (OSError, BaseError) as error:
            raise StoreUnavailable(f"{prefix} could not be written") from error
        return sum(entry["size_bytes"] for entry in entries.values())

    def read_folder(self, prefix: str) -> dict[str, bytes]:
        return self.read_files(prefix, None)

    def read_files(self, prefix: str, names: Collection[str] | None) -> dict[str, bytes]:
        """Some of a folder's files, those that it has of them; None: all."""
        try:
            manifest = json.loads(self._read(f"{prefix}/{MANIFEST}"))
            return {
                name: self._verified(f"{prefix}/{name}", entry["sha256"])
                for name, entry in manifest["files"].items()
                if names is None or name in names
            }
        except FileNotFoundError as error:
            raise FolderDamaged(f"{prefix} is not whole in the store") from error
        except (OSError, BaseError) as error:
            raise StoreUnavailable(f"{prefix} could not be read") from error

    def has_folder(self, prefix: str) -> bool:
        try:
            obstore.head(self._store, f"{prefix}/{MANIFEST}")
        except FileNotFoundError:
            return False
        except (OSError, BaseError) as error:
            raise StoreUnavailable(f"{prefix} could not be looked for") from error
        return True

    def delete_folder(self, prefix: str) -> None:
        """The manifest goes first: a folder half deleted is already not there."""
        try:
            self._delete_folder(prefix)
        except (OSError, BaseError) as error:
            raise StoreUnavailable(f"{prefix} could not be deleted") from error

    def _delete_folder(self, prefix: str) -> None:
        paths = [
            entry["path"] for batch in obstore.list(self._store, prefix=prefix) for entry in batch
        ]
        for path in sorted(paths, key=lambda path: not path.endswith(MANIFEST)):
            obstore.delete(self._store, path)

    def _read(self, path: str) -> bytes:
        return bytes(obstore.get(self._store, path).bytes())

    def _verified(self, path: str, sha256: str) -> bytes:
        data = self._read(path)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise FolderDamaged(f"{path} differs from its manifest")
        return data
