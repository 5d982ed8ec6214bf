"""An S3 server: s3rver, from npm, in a folder of its own. It checks key ids, not version 4 signatures.

Installed once, pinned. Where there is no node or no registry, tests that need it are skipped.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BUCKET = "tinsmith"
KEY, SECRET = "S3RVER", "S3RVER"
_VERSION = "3.7.1"
_INSTALL_SECONDS = 120


def _program() -> Path:
    folder = Path.home() / ".cache" / "tinsmith" / f"s3rver-{_VERSION}"
    program = folder / "node_modules" / "s3rver" / "bin" / "s3rver.js"
    npm = shutil.which("npm")
    if not program.exists():
        if npm is None:
            pytest.skip("an S3 server needs node and npm")
        folder.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--no-audit", "--no-fund", "--silent", f"s3rver@{_VERSION}"]
        made = subprocess.run(command, cwd=folder, capture_output=True, timeout=_INSTALL_SECONDS)
        if made.returncode:
            pytest.skip("s3rver could not be installed from npm")
    return program


@contextmanager
def running_s3(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which `s3://tinsmith` is that server."""
    program, port = _program(), _free_port()
    command = ["node", str(program), "-d", str(folder), "-a", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(
        [*command, "--configure-bucket", BUCKET],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"NODE_NO_WARNINGS": "1"},
    ) as server:
        try:
            _wait(port)
            yield {
                "AWS_ENDPOINT": f"http://127.0.0.1:{port}",
                "AWS_ALLOW_HTTP": "true",
                "AWS_REGION": "us-east-1",
                "AWS_ACCESS_KEY_ID": KEY,
                "AWS_SECRET_ACCESS_KEY": SECRET,
            }
        finally:
            server.terminate()


def _wait(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError("the S3 server did not start")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
