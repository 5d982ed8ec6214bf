"""What HTTP adds: the official SDK and plain connections against one API process on one core.

samples: added latency is the time from a result's being done in Valkey to its client's holding it,
         with 8 samples in flight, and with 1,000 that the worker begins
         when all of them wait.
submits: 1,000 polls of futures that stay pending, while 300 small ops a second are submitted.
step:    forward_backward and optim_step of 32 datums of 128 tokens, end to end through the SDK,
         minus the same work done by the same engine in this process.

    python benchmarks/http_load.py [samples] [burst] [submits] [step]
"""

import asyncio
import gc
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tinker
from tinker import types

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.http_connection import Connection
from benchmarks.http_service import Service, Spent, quantiles, running_service
from benchmarks.http_step import measure_step
from tests.contract.conftest import BASE_MODEL

MANY, FEW, ROUNDS, SAMPLE_TOKENS = 1000, 8, 25, 32
SUBMITS_PER_SECOND, SUBMIT_SECONDS, RUNS = 300, 20, 8


# samples


def measure_samples(service: Service) -> list[float]:
    """Added seconds of each of the many samples held by the SDK."""
    client = tinker.ServiceClient(base_url=service.url, api_key=service.api_key)
    sampler = client.create_sampling_client(base_model=BASE_MODEL).result()
    asyncio.run(sdk_samples(sampler, FEW, FEW))  # first connections and imports
    with report(service, f"SDK, {FEW} in flight", FEW * ROUNDS) as held:
        held |= asyncio.run(sdk_samples(sampler, FEW, FEW * ROUNDS))
    with report(service, f"SDK, {MANY} held", MANY) as held:
        held |= asyncio.run(all_at_once(service, sdk_samples(sampler, MANY, MANY)))
    added = added_seconds(service, held)
    asyncio.run(plain_samples(service))
    return added


def added_seconds(service: Service, held: dict[str, float]) -> list[float]:
    done = service.done_at()
    return [at - done[request_id] for request_id, at in held.items()]


@contextmanager
def report(service: Service, what: str, count: int) -> Iterator[dict[str, float]]:
    """Prints the added latency of requests, given the moments at which their clients held them."""
    spent, held = Spent(service), dict[str, float]()
    yield held
    assert len(held) == count
    print(f"{what:19} {quantiles(added_seconds(service, held))}   ({spent})", flush=True)


async def all_at_once(
    service: Service, samples: Coroutine[None, None, dict[str, float]]
) -> dict[str, float]:
    """The worker begins when all are submitted: what it finishes finds its client only waiting."""
    async with service.held_back(MANY):
        task = asyncio.create_task(samples)
    return await task


async def sdk_samples(sampler: Any, in_flight: int, count: int) -> dict[str, float]:
    """When each sample, by request id, was in the caller's hands."""
    held: dict[str, float] = {}
    prompt = types.ModelInput.from_ints([3, 4, 5, 6])
    params = types.SamplingParams(max_tokens=SAMPLE_TOKENS, temperature=1.0, seed=1)
    gate = asyncio.Semaphore(in_flight)

    async def one() -> None:
        async with gate:
            response = await sampler.sample(prompt, 1, params)
            held[response.sequences[0].sequence_id.rsplit(":", 1)[0]] = time.time()

    await asyncio.gather(*(one() for _ in range(count)))
    return held


async def plain_samples(service: Service) -> None:
    """Each sample on a connection of its own, with a held retrieve_future of its own."""
    connections = await opened(service, MANY)
    session = (await connections[0].must("/create_session", {}))["session_id"]
    body = {"session_id": session, "sampling_session_seq_id": 0, "base_model": BASE_MODEL}
    sampler = (await connections[0].must("/create_sampling_session", body))["sampling_session_id"]
    numbers = iter(range(10_000_000))

    async def sample(connections: list[Connection], each: int) -> dict[str, float]:
        held: dict[str, float] = {}

        async def client(connection: Connection) -> None:
            for _ in range(each):
                request_id = await submit_sample(connection, sampler, next(numbers))
                await connection.result(request_id)
                held[request_id] = time.time()

        await asyncio.gather(*(client(connection) for connection in connections))
        return held

    with report(service, f"plain, {FEW} in flight", FEW * ROUNDS) as held:
        held |= await sample(connections[:FEW], ROUNDS)
    with report(service, f"plain, {MANY} held", MANY) as held:
        held |= await all_at_once(service, sample(connections, 1))
    for connection in connections:
        connection.close()


async def submit_sample(connection: Connection, sampler: str, seq_id: int) -> str:
    body = {
        "sampling_session_id": sampler,
        "seq_id": seq_id,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [3, 4, 5, 6]}]},
        "sampling_params": {"max_tokens": SAMPLE_TOKENS, "temperature": 1.0, "seed": 1},
        "num_samples": 1,
    }
    return str((await connection.must("/asample", body))["request_id"])


async def opened(service: Service, count: int) -> list[Connection]:
    return [
        await Connection.open(service.host, service.port, service.api_key) for _ in range(count)
    ]


# submits


async def measure_submits(service: Service) -> None:
    """The pending futures are ops of one run whose op 1 never comes."""
    holders = await opened(service, MANY)
    blocked, *runs = [await new_run(holders[0], index) for index in range(RUNS + 1)]
    pending = [await submit_step(holders[0], blocked, seq_id) for seq_id in range(2, MANY + 2)]
    polls = [
        asyncio.create_task(connection.result(request_id))
        for connection, request_id in zip(holders, pending, strict=True)
    ]
    await asyncio.sleep(1)  # until they are held
    print(
        f"held: {sum(not poll.done() for poll in polls)} polls, {service.open_files()} open files"
    )
    free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
    for connection in await opened(service, 64):
        free.put_nowait(connection)
    numbers = {run: iter(range(1, 1_000_000)) for run in runs}

    async def small_op(index: int) -> None:
        run = runs[index % len(runs)]
        connection = await free.get()
        await submit_step(connection, run, next(numbers[run]))
        free.put_nowait(connection)

    spent = Spent(service)
    seconds = await at_rate(small_op)
    print(f"{len(seconds)} submits at {SUBMITS_PER_SECOND}/s: {quantiles(seconds)}   ({spent})")
    print(
        f"still held: {sum(not poll.done() for poll in polls)}, {service.open_files()} open files"
    )
    for poll in polls:
        poll.cancel()


async def at_rate(ask: Callable[[int], Awaitable[None]]) -> list[float]:
    """How long each took from the moment it was due: a late start counts as waiting."""
    started = time.perf_counter()

    async def timed(index: int, due: float) -> float:
        await ask(index)
        return time.perf_counter() - due

    tasks = []
    for index in range(SUBMITS_PER_SECOND * SUBMIT_SECONDS):
        due = started + index / SUBMITS_PER_SECOND
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(timed(index, due)))
    return list(await asyncio.gather(*tasks))


async def new_run(connection: Connection, index: int) -> str:
    session = await connection.must("/create_session", {})
    body = {
        "session_id": session["session_id"],
        "model_seq_id": index,
        "base_model": BASE_MODEL,
        "lora_config": {"rank": 2, "seed": 1},
    }
    stub = await connection.must("/create_model", body)
    await connection.result(stub["request_id"])
    return str(stub["model_id"])


async def submit_step(connection: Connection, run: str, seq_id: int) -> str:
    body = {"model_id": run, "seq_id": seq_id, "adam_params": {"learning_rate": 1e-4}}
    return str((await connection.must("/optim_step", body))["request_id"])


def main() -> None:
    gc.freeze()  # torch and the SDK are much to search for garbage while others are timed
    wanted = sys.argv[1:] or ["samples", "burst", "submits", "step"]
    measures: dict[str, tuple[Callable[[Service], object], dict[str, str]]] = {
        "samples": (measure_samples, {}),
        "burst": (measure_samples, {"TINSMITH_MAX_SAMPLING_SLOTS": "1024"}),
        "submits": (
            lambda service: asyncio.run(measure_submits(service)),
            {"TINSMITH_GAP_SECONDS": "600"},
        ),
        "step": (measure_step, {}),
    }
    for name in wanted:
        measure, settings = measures[name]
        print(f"== {name} {settings or ''}", flush=True)
        with (
            tempfile.TemporaryDirectory() as folder,
            running_service(Path(folder), None, **settings) as service,
        ):
            measure(service)


if __name__ == "__main__":
    main()
