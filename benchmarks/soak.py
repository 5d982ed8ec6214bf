"""Does anything grow? 16 clients of the official SDK train and sample for as long as asked.

Each client again and again opens a session, makes a run, trains it, saves its weights, samples from
them and leaves. Every few seconds the memory of every process is noted, and what Valkey
uses. A straight line through each, after a warm-up of three minutes, gives its slope.

    python benchmarks/soak.py [--minutes 30] [--clients 16]

Exits with 1 when, after the warm-up, memory of a process of the service grew by more than a tenth (and
more than a little), when files of some kind were left open beyond their bound, when Valkey used more
than its bound, or when, apart from what is one of a kind, it holds keys that do not expire. The SDK leaves
its connections to the API open and the API closes them after two idle minutes: until then they are
memory of the API process, and so are the rows that it remembers for a minute. The worker's grows
meanwhile by the products that oneDNN compiles for each number of rows: at most 1,024, about half a GB.
"""

import asyncio
import itertools
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import tinker
import typer
from tinker import types

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.http_service import Service, running_service
from tests.contract.conftest import BASE_MODEL

WARM_UP_SECONDS, EVERY_SECONDS = 180.0, 2.0
GROWTH_SHARE, GROWTH_MB, IDLE_SECONDS = 0.10, 48.0, 130.0
"""Memory may grow from the end of the warm-up to the end by a tenth, or so much where that is more."""
MOST_FILES = {"clients": 16, "unix sockets": 64 + 8, "database": 2 * 15 + 1, "other": 24}
"""Of each kind, once all is idle: connections that clients keep alive, the pool of connections to Valkey
with a few of the loop's own, SQLite's file and log for each of the pool's 15 connections (which it keeps
open until nobody reads) with one index, and logs, pipes and the like."""
ONE_OF_A_KIND = {
    "beats",
    "silent",
    "models",
    "model",
    "workers",
    "samplers",
    "done",
    "ctl",
    "steps",
    "usage",
    "rq",
}
"""Keys without an end: of the service as a whole, whatever its clients do."""
VALKEY_MB = 512.0
"""Results are kept for six hours and then expire: the most that a soak's results may take."""


@dataclass
class Series:
    """Megabytes over time."""

    at: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def note(self, at: float, value: float) -> None:
        self.at.append(at)
        self.values.append(value)

    def growth(self) -> tuple[float, float, float]:
        """Where the line after the warm-up begins, by how much it rises to its end, and its slope a minute."""
        first = sum(at < self.at[0] + WARM_UP_SECONDS for at in self.at)
        at, values = np.array(self.at[first:]), np.array(self.values[first:])
        slope, start = np.polyfit(at - at[0], values, 1)
        return float(start), float(slope * (at[-1] - at[0])), float(slope * 60)


class Watch:
    """Notes the memory of every process, from a thread of its own."""

    def __init__(self, service: Service) -> None:
        self._service, self._stop = service, threading.Event()
        self.memory = {name: Series() for name in service.processes}
        self.valkey = Series()
        self._thread = threading.Thread(target=self._run, name="watch")

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(EVERY_SECONDS):
            now = time.monotonic()
            for name, process in self._service.processes.items():
                self.memory[name].note(now, _resident_mb(process))
            used = self._service.redis.info("memory")["used_memory"]
            self.valkey.note(now, used / 1e6)


def _resident_mb(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 1e6


async def client(service: Service, until: float, done: "itertools.count[int]") -> None:
    datum = types.Datum(
        model_input=types.ModelInput.from_ints([3, 4, 5, 6]),
        loss_fn_inputs={
            "target_tokens": types.TensorData(data=[4, 5, 6, 7], dtype="int64", shape=[4]),
            "weights": types.TensorData(data=[1.0] * 4, dtype="float32", shape=[4]),
        },
    )
    params = types.SamplingParams(max_tokens=8, temperature=1.0, seed=1)
    while time.monotonic() < until:
        with tinker.ServiceClient(base_url=service.url, api_key=service.api_key) as here:
            run = await here.create_lora_training_client_async(base_model=BASE_MODEL, rank=4)
            for _ in range(5):
                learned = await run.forward_backward_async([datum] * 4, "cross_entropy")
                stepped = await run.optim_step_async(types.AdamParams(learning_rate=1e-4))
                await learned
                await stepped
            sampler = await run.save_weights_and_get_sampling_client_async()
            prompt = types.ModelInput.from_ints([3, 4])
            await asyncio.gather(*(sampler.sample_async(prompt, 1, params) for _ in range(4)))
        next(done)


async def work(service: Service, clients: int, seconds: float) -> int:
    """Rounds that the clients went through."""
    done = itertools.count()
    until = time.monotonic() + seconds
    await asyncio.gather(*(client(service, until, done) for _ in range(clients)))
    return next(done)


def open_files(service: Service) -> dict[str, "Counter[str]"]:
    """By kind, of the service's processes; the client's are the SDK's own."""
    names = [name for name in service.processes if name != "client"]
    return {name: _kinds(service.processes[name], service.port) for name in names}


def _kinds(process: psutil.Process, port: int) -> "Counter[str]":
    connections = {one.fd: one for one in process.net_connections(kind="all")}
    kinds: Counter[str] = Counter()
    for place in Path(f"/proc/{process.pid}/fd").iterdir():
        one = connections.get(int(place.name))
        if one is not None and one.family == socket.AF_UNIX:
            kinds["unix sockets"] += 1
        elif one is not None and one.status == psutil.CONN_ESTABLISHED and one.laddr.port == port:
            kinds["clients"] += 1
        else:
            kinds["database" if "tinsmith.db" in str(place.readlink()) else "other"] += 1
    return kinds


def judge_files(before: dict[str, "Counter[str]"], after: dict[str, "Counter[str]"]) -> list[str]:
    """What is not flat, in a sentence each; as below, everything is printed."""
    found = []
    for name, kinds in after.items():
        told = ", ".join(f"{kinds[kind]} {kind}" for kind in MOST_FILES)
        print(f"{name:7} open files {before[name].total():6d} before, {kinds.total():6d} when all were "
              f"idle again: {told}")  # fmt: skip
        for kind, most in MOST_FILES.items():
            if kinds[kind] > most:
                found.append(
                    f"{name} left {kinds[kind]} files open: {kind}, of which {most} may be"
                )
    return found


def judge_keys(service: Service) -> list[str]:
    """Of finished sessions nothing may stay in Valkey for ever."""
    names = [key.decode() for key in service.redis.scan_iter(count=1000)]
    lasting = [name for name in names if service.redis.ttl(name) == -1]
    left = Counter(name.split(":")[0] for name in lasting)
    print(f"valkey  keys {len(names):6d}, of which {len(lasting)} do not expire: {dict(left)}")
    strange = sorted(left.keys() - ONE_OF_A_KIND)
    return [f"Valkey keeps {left[kind]} keys {kind}:* for ever" for kind in strange]


def judge_memory(watch: Watch) -> list[str]:
    found = []
    for name, one in watch.memory.items():
        start, grown, slope = one.growth()
        print(f"{name:7} memory {start:8.1f} MB after the warm-up, {grown:+7.1f} since, "
              f"{slope:+7.2f} a minute")  # fmt: skip
        if name != "client" and grown > max(GROWTH_MB, GROWTH_SHARE * start):
            found.append(f"memory of {name} grew by {grown:.1f} MB")
    start, grown, slope = watch.valkey.growth()
    most = max(watch.valkey.values)
    print(f"valkey  used   {start:8.1f} MB after the warm-up, {grown:+7.1f} since, "
          f"{slope:+7.2f} a minute, {most:.1f} at most")  # fmt: skip
    if most > VALKEY_MB:
        found.append(f"Valkey used {most:.0f} MB")
    return found


def main(
    minutes: Annotated[
        float, typer.Option(help="How long the clients work after the warm-up.")
    ] = 30.0,
    clients: int = 16,
) -> None:
    with tempfile.TemporaryDirectory() as folder, running_service(Path(folder), None) as service:
        before = open_files(service)
        with Watch(service) as watch:
            rounds = asyncio.run(work(service, clients, WARM_UP_SECONDS + minutes * 60))
        told = f"{clients} clients went through {rounds} rounds, {minutes:g} minutes of them judged"
        print(told, flush=True)
        found = judge_memory(watch)
        time.sleep(IDLE_SECONDS)
        found += judge_files(before, open_files(service)) + judge_keys(service)
    for sentence in found:
        print(f"NOT FLAT: {sentence}")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    typer.run(main)
