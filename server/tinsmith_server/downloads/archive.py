"""A checkpoint as one tar file, made while it is sent: the form that SDKs before 0.36 download."""

import tarfile
from collections.abc import AsyncIterator

from tinsmith_server.storage import Storage

_BLOCK, _END = 512, bytes(1024)
_MARK = "checkpoint_complete"
_FILES = ("adapter_config.json", "adapter_model.safetensors")


async def archive(storage: Storage, prefix: str) -> tuple[int, AsyncIterator[bytes]]:
    """Its size, and its bytes. The mark is how old clients know that nothing is missing."""
    found = await storage.names(prefix)
    sizes = {name: await storage.size(prefix, name) for name in _FILES if name in found}
    total = _entry_size(0) + sum(_entry_size(size) for size in sizes.values()) + len(_END)
    return total, _pieces(storage, prefix, sizes)


async def _pieces(storage: Storage, prefix: str, sizes: dict[str, int]) -> AsyncIterator[bytes]:
    yield _header(_MARK, 0)
    for name, size in sizes.items():
        yield _header(name, size)
        _, content = await storage.stream(prefix, name)
        async for piece in content:
            yield piece
        yield bytes(-size % _BLOCK)
    yield _END


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry.tobuf(tarfile.GNU_FORMAT)


def _entry_size(size: int) -> int:
    return _BLOCK + size + -size % _BLOCK
