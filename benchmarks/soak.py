"""Does anything grow? 16 clients of the official SDK train and sample for as long as asked.

Each client again and again opens a session, makes a run, trains it, saves its weights, samples from
them and leaves. Every few seconds the memory of every process is noted, and what Valkey
uses. After a warm-up, a straight line through each gives its slope.

    python benchmarks/soak.py [--minutes 30] [--clients 16]

Exits with 1 when, after the warm-up, memory of a process of the service grew by more than a tenth (and
more than a little), when open files were left behind, or when Valkey used more than its bound. The SDK
leaves its connections to the API open and the API closes them after two idle minutes, so files are
judged after that time.
"""

import asyncio
import itertools
import sys
import tempfile
import threading
import time
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

WARM_UP_SHARE, EVERY_SECONDS = 0.3, 2.0
GROWTH_SHARE, GROWTH_MB, LEFT_FILES, IDLE_SECONDS = 0.10, 48.0, 96, 130.0
"""Memory may grow from the end of the warm-up to the end by a tenth, or so much where that is more.
Files that stay are the pool of 64 connections to Valkey, and the database's."""
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
        first = int(len(self.at) * WARM_UP_SHARE)
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


def open_files(service: Service) -> dict[str, int]:
    """Of the service's processes; the client's are the SDK's own."""
    return {name: one.num_fds() for name, one in service.processes.items() if name != "client"}


def judge_files(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """What is not flat, in a sentence each; as below, everything is printed."""
    for name, count in after.items():
        print(f"{name:7} open files {before[name]:6d} before, {count:6d} when all were idle again")
    left = {name: count - before[name] for name, count in after.items()}
    return [f"{name} left {count} files open" for name, count in left.items() if count > LEFT_FILES]


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
    minutes: Annotated[float, typer.Option(help="How long the clients work.")] = 30.0,
    clients: int = 16,
) -> None:
    with tempfile.TemporaryDirectory() as folder, running_service(Path(folder), None) as service:
        before = open_files(service)
        with Watch(service) as watch:
            rounds = asyncio.run(work(service, clients, minutes * 60))
        print(f"{clients} clients went through {rounds} rounds in {minutes:g} minutes", flush=True)
        found = judge_memory(watch)
        time.sleep(IDLE_SECONDS)
        found += judge_files(before, open_files(service))
    for sentence in found:
        print(f"NOT FLAT: {sentence}")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    typer.run(main)
