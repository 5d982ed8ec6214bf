"""Valkey, API, worker and background as one thing that starts, is watched and stops.

Order matters twice: Valkey is there before anyone, and leaves after everyone.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

import httpx
from redis import Redis
from rich.console import Console
from tinsmith.protocol import keys

from tinsmith_server.embedded.process import start_process, stop_process
from tinsmith_server.embedded.valkey import socket_path, start_valkey
from tinsmith_server.problems import Problem
from tinsmith_server.settings import Settings

_READY_SECONDS = 180
_RESTARTS = 5
_PATIENCE_SECONDS = {"worker": 20.0, "api": 5.0, "background": 5.0}


@contextlib.contextmanager
def only_one(data_dir: Path) -> Iterator[None]:
    """Two services in one folder would fight over its database."""
    with (data_dir / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Problem(f"A service already runs in {data_dir}. Stop it first.") from None
        yield


class Stack:
    """A context: entered when the service answers, left when nothing of it remains."""

    def __init__(self, data_dir: Path, host: str, port: int, models: Mapping[str, Path]) -> None:
        scheme = "https" if os.environ.get("TINSMITH_TLS_CERT") else "http"
        self.data_dir, self.url = data_dir, f"{scheme}://{host}:{port}"
        self._models = models
        self._stopping = threading.Event()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._valkey: subprocess.Popen[bytes] | None = None
        self._environment = os.environ | {
            "TINSMITH_DATA_DIR": str(data_dir),
            "TINSMITH_HOST": host,
            "TINSMITH_PORT": str(port),
            "TINSMITH_MODELS": ",".join(f"{name}={folder}" for name, folder in models.items()),
            "OMP_WAIT_POLICY": "PASSIVE",  # idle threads of the worker must not spin
        }

    @property
    def settings(self) -> Settings:
        return Settings.from_environment(self._environment)

    def __enter__(self) -> Self:
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._ask_to_stop)
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def watch(self) -> None:
        """Until asked to stop: what dies is started again, a few times."""
        restarts = 0
        while not self._stopping.wait(0.5):
            if self._valkey is not None and self._valkey.poll() is not None:
                raise Problem(f"Valkey has ended; its log is {self._log('valkey')}.")
            for name, process in list(self._processes.items()):
                if process.poll() is None:
                    continue
                restarts += 1
                if restarts > _RESTARTS:
                    raise Problem(f"The {name} keeps ending; its log is {self._log(name)}.")
                Console(stderr=True).print(f"The {name} has ended; starting it again.")
                self._launch(name)

    def _start(self) -> None:
        if "TINSMITH_REDIS_URL" not in self._environment:
            self._valkey, url = start_valkey(self.data_dir, self._log("valkey"))
            self._environment["TINSMITH_REDIS_URL"] = url
        for name in _COMMANDS:
            self._launch(name)
        with Console(stderr=True).status(f"Starting; the worker reads {', '.join(self._models)}"):
            self._wait_until_ready()

    def _launch(self, name: str) -> None:
        command = [sys.executable, *_COMMANDS[name]]
        self._processes[name] = start_process(command, self._log(name), self._environment)

    def _log(self, name: str) -> Path:
        return self.data_dir / "logs" / f"{name}.log"

    def _wait_until_ready(self) -> None:
        """The API answers and some worker holds every model."""
        redis = Redis.from_url(self._environment["TINSMITH_REDIS_URL"])
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline and not self._stopping.is_set():
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise Problem(_last_words(name, self._log(name)))
            if self._answers() and all(redis.zcard(keys.workers(name)) for name in self._models):
                redis.close()
                return
            time.sleep(0.1)
        if self._stopping.is_set():
            raise Problem("Stopped before it was ready.")
        raise Problem(f"The service was not ready in time; logs: {self.data_dir / 'logs'}.")

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            # Of its own process: the certificate may be for the name that others use.
            return httpx.get(f"{self.url}/healthz", timeout=2, verify=False).is_success
        return False

    def _stop(self) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        for name, process in self._processes.items():
            stop_process(process, _PATIENCE_SECONDS[name])
        if self._valkey is not None:
            stop_process(self._valkey, 10.0)
            socket_path(self.data_dir / "valkey").unlink(missing_ok=True)

    def _ask_to_stop(self, signum: int, frame: FrameType | None) -> None:
        self._stopping.set()


_COMMANDS = {
    "api": ("-m", "tinsmith_server.cli", "serve", "--no-setup-link"),  # it would stay in the log
    "worker": ("-m", "tinsmith_worker"),
    "background": ("-m", "tinsmith_server.cli", "background"),
}


def _last_words(name: str, log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    said = lines[-1] if lines else "it said nothing"
    return f"The {name} could not start: {said.removeprefix('tinsmith work: ')} (log: {log})"
