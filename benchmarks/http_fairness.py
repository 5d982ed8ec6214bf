"""How long a small request waits beside a tenant that has queued 200 large ones.

alone: nothing else is queued.            fair: it comes from another organization.
FIFO:  it stands behind them in their own line, which is what one queue for everybody would be.
batch: the time between two of the tenant's batches, in the same run of the service: a full pass of
       training, or as many samples as find a place.
delay: what it waits beside its own batch, which the others' work may fill up.

    python benchmarks/http_fairness.py [training] [sampling]

Exits with 1 when that is more than one batch. The three are measured one
after another, each of them ROUNDS times; medians are printed.
"""

import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.http_connection import Connection
from benchmarks.http_load import new_run
from benchmarks.http_service import Service, running_service
from tests.contract.conftest import BASE_MODEL

LARGE, ROUNDS, SLOTS, PASS_TOKENS, DATUM = 200, 3, 8, 2048, 64
SETTINGS = {
    "TINSMITH_MAX_SAMPLING_SLOTS": str(SLOTS),
    "TINSMITH_MAX_PASS_TOKENS": str(PASS_TOKENS),
}
Submit = Callable[[Connection, str, int], Awaitable[str]]


@dataclass
class Kind:
    """How a line is opened, and what a large and a small request in it are."""

    open_line: Callable[[Connection], Awaitable[str]]
    large: Submit
    small: Submit
    a_batch: int
    """How many of the large ones share one."""


@dataclass
class Waits:
    alone: float
    fair: float
    fifo: float
    batch: float


class Line:
    """A connection and a line of its own, which counts its requests."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection, self.name, self._next = connection, name, 1

    @classmethod
    async def open(cls, service: Service, key: str, kind: Kind) -> "Line":
        connection = await Connection.open(service.host, service.port, key)
        return cls(connection, await kind.open_line(connection))

    async def submit(self, ask: Submit) -> str:
        self._next += 1
        return await ask(self.connection, self.name, self._next - 1)

    async def timed(self, ask: Submit) -> float:
        """Seconds until its result is here."""
        began = time.perf_counter()
        await self.connection.result(await self.submit(ask))
        return time.perf_counter() - began


async def measure(service: Service, kind: Kind) -> list[Waits]:
    large = await Line.open(service, service.api_key, kind)
    small = await Line.open(service, service.small_key, kind)
    for line in (large, small):
        await line.timed(kind.small)  # whatever happens once
    return [await one_round(service, kind, large, small) for _ in range(ROUNDS)]


async def one_round(service: Service, kind: Kind, large: Line, small: Line) -> Waits:
    alone = await small.timed(kind.small)
    queued = await crowd(large, kind)
    fair = await small.timed(kind.small)
    still = pending(service, queued)
    assert still > LARGE // 2, f"only {still} were still queued: nothing was in the way"
    await large.connection.result(queued[-1])
    batch = between_batches(service, queued, kind.a_batch)
    queued = await crowd(large, kind)
    fifo = await large.timed(kind.small)
    await large.connection.result(queued[-1])
    return Waits(alone, fair, fifo, batch)


async def crowd(large: Line, kind: Kind) -> list[str]:
    """All of them queued, and the first of them done."""
    queued = [await large.submit(kind.large) for _ in range(LARGE)]
    await large.connection.result(queued[0])
    return queued


def pending(service: Service, requests: Sequence[str]) -> int:
    done = service.done_at()
    return sum(one not in done for one in requests)


def between_batches(service: Service, requests: Sequence[str], a_batch: int) -> float:
    """The median, from the clock of the queue."""
    done = service.done_at()
    moments = sorted(done[one] for one in requests)[::a_batch]
    return statistics.median(later - one for one, later in itertools.pairwise(moments))


# What is asked


async def open_run(connection: Connection) -> str:
    return await new_run(connection, 0)


async def learn(connection: Connection, run: str, seq_id: int, datums: int) -> str:
    tokens = [3 + index % 60 for index in range(DATUM)]
    tensors = {
        "target_tokens": {"data": tokens, "dtype": "int64", "shape": [DATUM]},
        "weights": {"data": [1.0] * DATUM, "dtype": "float32", "shape": [DATUM]},
    }
    prompt = {"chunks": [{"type": "encoded_text", "tokens": tokens}]}
    given = {"data": [{"model_input": prompt, "loss_fn_inputs": tensors}] * datums}
    body = {"model_id": run, "seq_id": seq_id, "forward_backward_input": given}
    given["loss_fn"] = "cross_entropy"  # type: ignore[assignment]
    return str((await connection.must("/forward_backward", body))["request_id"])


async def open_sampler(connection: Connection) -> str:
    session = (await connection.must("/create_session", {}))["session_id"]
    body = {"session_id": session, "sampling_session_seq_id": 0, "base_model": BASE_MODEL}
    return str((await connection.must("/create_sampling_session", body))["sampling_session_id"])


async def draw(connection: Connection, sampler: str, seq_id: int, tokens: int) -> str:
    body: dict[str, Any] = {
        "sampling_session_id": sampler,
        "seq_id": seq_id,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [3, 4, 5, 6]}]},
        "sampling_params": {"max_tokens": tokens, "temperature": 1.0, "seed": seq_id, "stop": []},
        "num_samples": 1,
    }
    return str((await connection.must("/asample", body))["request_id"])


KINDS = {
    "training": Kind(
        open_run,
        lambda *to: learn(*to, datums=PASS_TOKENS // DATUM),
        lambda *to: learn(*to, datums=1),
        a_batch=1,
    ),
    "sampling": Kind(
        open_sampler, lambda *to: draw(*to, tokens=16), lambda *to: draw(*to, tokens=4), SLOTS
    ),
}


def main() -> int:
    fair = True
    for name in sys.argv[1:] or list(KINDS):
        with (
            tempfile.TemporaryDirectory() as folder,
            running_service(Path(folder), None, **SETTINGS) as service,
        ):
            rounds = asyncio.run(measure(service, KINDS[name]))
        alone, shared, fifo, batch = (
            statistics.median(getattr(one, what) for one in rounds) * 1000
            for what in ("alone", "fair", "fifo", "batch")
        )
        delay = max(0.0, shared - max(alone, batch))
        fair = fair and delay <= batch
        print(
            f"{name}: small request alone {alone:.0f} ms, beside {LARGE} queued {shared:.0f} ms, "
            f"FIFO {fifo:.0f} ms; delay {delay:.0f} ms = {delay / batch:.2f} batches of "
            f"{batch:.0f} ms (goal: 1)",
            flush=True,
        )
    return 0 if fair else 1


if __name__ == "__main__":
    raise SystemExit(main())
