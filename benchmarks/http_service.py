"""The real service for the HTTP benchmarks: Valkey, one API process, one worker, with a tiny model
where no other is asked for.

Pinned, the API process has the first core to itself; everything else, the measuring client too, shares
the others. So what is measured of the API process is what one core gives.
"""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
from redis import Redis
from tinsmith.protocol import keys
from tinsmith_server.accounts.keys import KeyTerms
from tinsmith_server.cli.keys import create_key
from tinsmith_server.embedded.process import start_process, stop_process
from tinsmith_server.embedded.valkey import start_valkey
from tinsmith_server.settings import Settings

from tests.contract.conftest import BASE_MODEL, save_tiny

_COMMANDS = {
    "api": [sys.executable, "-m", "tinsmith_server.cli", "serve"],
    "worker": [sys.executable, "-m", "tinsmith_worker"],
}
CORES = sorted(os.sched_getaffinity(0))
API_CORE, OTHER_CORES = CORES[:1], CORES[1:] or CORES


@dataclass(frozen=True)
class Service:
    host: str
    port: int
    api_key: str
    small_key: str
    """Of another organization."""
    model_folder: Path
    redis: "Redis[bytes]"
    processes: dict[str, psutil.Process]

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def cpu_seconds(self) -> dict[str, float]:
        """Of every process of the service and of this one, since their starts."""
        times = {name: process.cpu_times() for name, process in self.processes.items()}
        return {name: spent.user + spent.system for name, spent in times.items()}

    def open_files(self) -> int:
        return int(self.processes["api"].num_fds())

    @asynccontextmanager
    async def held_back(self, samples: int) -> AsyncIterator[None]:
        """The worker stands still until so many samples wait in the queue and their polls are held."""
        self.processes["worker"].suspend()
        yield
        while int(self.redis.hget(keys.load(keys.SERVER_SCOPE), "samples") or 0) < samples:
            await asyncio.sleep(0.1)
        await asyncio.sleep(1.0)
        self.processes["worker"].resume()

    def done_at(self) -> dict[str, float]:
        """When each request became done in Valkey: its stream's ids are milliseconds of its clock."""
        rows = self.redis.xrange(keys.DONE)
        return {
            fields[b"request"].decode(): int(entry_id.split(b"-")[0]) / 1000
            for entry_id, fields in rows
        }


@contextmanager
def running_service(
    data_dir: Path, model_folder: Path | None = None, *, pinned: bool = True, **settings: str
) -> Iterator[Service]:
    """With the tiny model where no other is named; either is served as BASE_MODEL."""
    if pinned:
        os.sched_setaffinity(0, OTHER_CORES)
    host, port = "127.0.0.1", _free_port()
    model_folder = model_folder or save_tiny(data_dir / "tiny", 0)
    valkey, redis_url = start_valkey(data_dir, data_dir / "valkey.log")
    environment = os.environ | {
        "TINSMITH_DATA_DIR": str(data_dir),
        "TINSMITH_REDIS_URL": redis_url,
        "TINSMITH_MODELS": f"{BASE_MODEL}={model_folder}",
        "TINSMITH_HOST": host,
        "TINSMITH_PORT": str(port),
        "TINSMITH_TORCH_THREADS": "1",
        "TINSMITH_LEASE_SECONDS": "60",  # it outlasts `held_back`
        "OMP_NUM_THREADS": "1",
        **settings,
    }
    told = Settings.from_environment(environment)
    api_key, small_key = (create_key(told, KeyTerms(name=name), name) for name in ("load", "small"))
    started: list[subprocess.Popen[bytes]] = []
    try:
        processes = {"client": psutil.Process(), "valkey": psutil.Process(valkey.pid)}
        for name, command in _COMMANDS.items():
            started.append(start_process(command, data_dir / f"{name}.log", environment))
            processes[name] = psutil.Process(started[-1].pid)
        if pinned:
            processes["api"].cpu_affinity(API_CORE)
        service = Service(
            host, port, api_key, small_key, model_folder, Redis.from_url(redis_url), processes
        )
        _wait_until_ready(service)
        yield service
    finally:
        for process in (*started, valkey):
            stop_process(process, 20)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(service: Service) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{service.url}/healthz").is_success and service.redis.zcard(
                keys.workers(BASE_MODEL)
            ):
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError("The service did not become ready.")


def quantiles(seconds: Iterable[float]) -> str:
    milliseconds = np.array(list(seconds)) * 1000
    p50, p99 = np.percentile(milliseconds, [50, 99])
    return f"p50 {p50:7.1f}  p99 {p99:7.1f}  max {milliseconds.max():7.1f} ms"


class Spent:
    """CPU seconds of every process between two moments."""

    def __init__(self, service: Service) -> None:
        self._service, self._before = service, service.cpu_seconds()
        self._started = time.perf_counter()

    def __str__(self) -> str:
        wall = time.perf_counter() - self._started
        after = self._service.cpu_seconds()
        parts = [f"{name} {after[name] - self._before[name]:.2f}" for name in sorted(after)]
        return f"wall {wall:.2f} s; CPU s: {', '.join(parts)}; load {os.getloadavg()[0]:.1f}"
