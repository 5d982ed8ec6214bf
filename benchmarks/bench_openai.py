"""The OpenAI-compatible endpoint as its clients feel it: streams of SmolLM2-135M at once, each by the
`openai` package. Time to the first token and tokens a second with 1, 8 and 32 clients; beside them the
same samples asked whole, so that what streaming costs is seen. Wall time, for a wire is waited for.
"""

import asyncio
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from openai import AsyncOpenAI

from benchmarks.harness import Row, asked_rounds, finish, one_thread
from benchmarks.http_service import Service, quantiles, running_service
from tests.contract.conftest import BASE_MODEL
from tests.models import prepared_smollm2

CLIENTS = (1, 8, 32)
TOKENS = 32
PROMPT = "Tell me about the harbour of an old town in the north, its ships and its people."


@dataclass(frozen=True)
class Round:
    first_seconds: list[float]
    """Of each client, from asking to the first token."""
    seconds: float
    """Until the last client has all of its tokens."""


async def _one(ai: AsyncOpenAI, seed: int, *, stream: bool) -> float:
    """Answers when the first token came; of one asked whole, when all came."""
    began = time.perf_counter()
    asked = {"model": BASE_MODEL, "prompt": f"{seed}. {PROMPT}", "max_tokens": TOKENS, "seed": seed}
    answer = await ai.completions.create(
        **asked,  # type: ignore[call-overload]
        stream=stream,
        extra_body={"ignore_eos": True},
    )
    if not stream:
        return time.perf_counter() - began
    first = None
    async for _ in answer:
        first = first or time.perf_counter()
    assert first is not None
    return first - began


async def _round(service: Service, clients: int, number: int, *, stream: bool) -> Round:
    """Other prompts each time: what the service remembers of the last round is no help."""
    async with AsyncOpenAI(
        base_url=f"{service.url}/v1", api_key=service.api_key, timeout=300
    ) as ai:
        began = time.perf_counter()
        seeds = range(1000 * number, 1000 * number + clients)
        first = await asyncio.gather(*(_one(ai, seed, stream=stream) for seed in seeds))
        return Round(list(first), time.perf_counter() - began)


def measure(service: Service, clients: int, rounds: int) -> list[Row]:
    """Streams and whole answers take turns."""
    streamed, whole = [], []
    for number in range(rounds + 1):
        for stream, kept in ((True, streamed), (False, whole)):
            one = asyncio.run(
                _round(service, clients, 10 * clients + 2 * number + stream, stream=stream)
            )
            if number:  # the first warms up
                kept.append(one)
    firsts = [seconds for one in streamed for seconds in one.first_seconds]
    print(f"{clients:3} clients: first token {quantiles(firsts)}")
    waited = [seconds for one in whole for seconds in one.first_seconds]
    return [
        Row(
            f"openai: {clients} clients, first token / whole answer",
            median(firsts) * 1e3,
            median(waited) * 1e3,
            "wall ms",
            median(waited) / median(firsts),
        ),
        Row(
            f"openai: {clients} clients, streamed / whole",
            _speed(streamed, clients),
            _speed(whole, clients),
            "tokens/s",
            median(b.seconds / a.seconds for a, b in zip(streamed, whole, strict=True)),
        ),
    ]


def _speed(rounds: list[Round], clients: int) -> float:
    """Tokens a second of all clients together."""
    return median(clients * TOKENS / one.seconds for one in rounds)


def main() -> None:
    one_thread()
    rounds = asked_rounds(2)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_service(Path(folder), prepared_smollm2()) as service,
    ):
        finish([row for clients in CLIENTS for row in measure(service, clients, rounds)])


if __name__ == "__main__":
    main()
