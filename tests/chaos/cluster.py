"""A whole service of real processes, each of which can be killed, stopped and started again."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from redis import Redis
from tinsmith.protocol import keys
from tinsmith_server.embedded.process import start_process, stop_process
from tinsmith_server.embedded.valkey import start_valkey

from tests.chaos.balancer import Balancer
from tests.contract.conftest import BASE_MODEL, save_tiny
from tests.postgres import Postgres

APIS = ("api-0", "api-1")
WORKERS = ("worker-0", "worker-1")
_READY_SECONDS = 120
_PATIENCE_SECONDS = 30


@dataclass
class Cluster:
    folder: Path
    store: str
    ports: Mapping[str, int]
    postgres: Postgres
    environment: dict[str, str]
    url: str = ""
    api_key: str = ""
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    _starter: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    """A child is ended by the system when the thread that started it ends, so one thread starts all."""

    def start(self, name: str) -> None:
        self._starter.submit(self._start, name).result()

    def _start(self, name: str) -> None:
        if name == "valkey":
            process, url = start_valkey(self.folder, self.log(name))
            self.processes[name], self.environment["TINSMITH_REDIS_URL"] = process, url
            return
        command = {
            "api": [sys.executable, "-m", "tinsmith_server.cli", "serve"],
            "worker": [sys.executable, "-m", "tinsmith_worker"],
        }[name.split("-")[0]]
        port = {"TINSMITH_PORT": str(self.ports[name])} if name in self.ports else {}
        self.processes[name] = start_process(command, self.log(name), self.environment | port)

    def log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    def pause(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGCONT)

    def redis(self) -> Redis:
        return Redis.from_url(self.environment["TINSMITH_REDIS_URL"])

    def wait_until_ready(self) -> None:
        """Every process that was started lives, every API answers, every worker is announced."""
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{name} has ended:\n{self.log(name).read_text()[-2000:]}")
            apis = [name for name in APIS if name in self.processes]
            workers = [name for name in WORKERS if name in self.processes]
            if all(self._answers(name) for name in apis) and self._live_workers() >= len(workers):
                return
            time.sleep(0.1)
        raise RuntimeError(f"the service was not ready in time; logs in {self.folder / 'logs'}")

    def _answers(self, name: str) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.ports[name]}/healthz", timeout=2).is_success
        except httpx.TransportError:
            return False

    def _live_workers(self) -> int:
        with self.redis() as redis:
            names = redis.zrange(keys.workers(BASE_MODEL), 0, -1)
            return sum(redis.exists(keys.lease(name.decode())) for name in names)

    def stop(self) -> None:
        for name in sorted(self.processes, key=lambda name: name == "valkey"):  # it leaves last
            process = self.processes[name]
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                stop_process(process, _PATIENCE_SECONDS)
        self._starter.shutdown()
        self.postgres.stop()


@contextmanager
def running_cluster(
    folder: Path, store: str, settings: Mapping[str, str] | None = None
) -> Iterator[Cluster]:
    """Two API processes behind a balancer, two workers, Valkey with its file, PostgreSQL."""
    ports = {name: _free_port() for name in APIS}
    model = save_tiny(folder / "model", 0)
    with ExitStack() as stack:
        postgres = Postgres()
        environment = os.environ | {
            "TINSMITH_DATA_DIR": str(folder),
            "TINSMITH_DATABASE_URL": postgres.new_database("tinsmith"),
            "TINSMITH_STORE_URL": store,
            "TINSMITH_KEY_PEPPER": "of-the-chaos-test",
            "TINSMITH_MODELS": f"{BASE_MODEL}={model}",
            "TINSMITH_HOST": "127.0.0.1",
            "TINSMITH_TORCH_THREADS": "1",
            "TINSMITH_FWDBWD_MAX_CHUNK_LEN": "2",
            "TINSMITH_SNAPSHOT_STEPS": "4",
            "OMP_NUM_THREADS": "1",
            **(settings or {}),
        }
        made = Cluster(folder, store, ports, postgres, environment)
        stack.callback(made.stop)
        for name in ("valkey", *APIS, *WORKERS):
            made.start(name)
        made.api_key = _new_key(environment)
        made.url = stack.enter_context(Balancer([*ports.values()])).url
        made.wait_until_ready()
        yield made


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _new_key(environment: Mapping[str, str]) -> str:
    command = [sys.executable, "-m", "tinsmith_server.cli", "keys", "create", "chaos", "--quiet"]
    made = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return made.stdout.strip()
