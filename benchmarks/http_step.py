"""A training step through the official SDK against the same step by the worker's engine alone.

With a tiny model the difference is what queue and wire cost. `client` is the CPU time of this process,
which is the SDK's.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tinker
import torch
from tinker import types
from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.base_model import load
from tinsmith_worker.engine.optimizer import AdamParams, RunState, optim_step
from tinsmith_worker.engine.training import Work, forward_backward
from tinsmith_worker.engine.values import Datum
from tinsmith_worker.settings import Settings

from benchmarks.http_service import Service
from tests.contract.conftest import BASE_MODEL

DATUMS, DATUM_TOKENS, STEPS = 32, 128, 30


@dataclass(frozen=True)
class StepTimes:
    """Medians, in wall milliseconds."""

    through_http: float
    engine_alone: float


def measure_step(
    service: Service, *, steps: int = STEPS, warm_up: int = 3, dtype: torch.dtype = torch.float32
) -> StepTimes:
    """`dtype` is the one that the service was started with."""
    client = tinker.ServiceClient(base_url=service.url, api_key=service.api_key)
    run = client.create_lora_training_client(BASE_MODEL, rank=8).result()
    engine_alone = engine_step(service, dtype)
    data = [sdk_datum(index) for index in range(DATUMS)]

    def through_http() -> None:
        gradient = run.forward_backward(data, "cross_entropy")
        step = run.optim_step(types.AdamParams(learning_rate=1e-4))
        gradient.result()
        step.result()

    for work in (through_http, engine_alone) * warm_up:
        work()
    rows = []
    for _ in range(steps):
        cpu = service.cpu_seconds()
        http = seconds_of(through_http)
        spent = {name: after - cpu[name] for name, after in service.cpu_seconds().items()}
        rows.append((http, seconds_of(engine_alone), spent))
    whole, alone = (np.median([row[index] for row in rows]) * 1000 for index in (0, 1))
    overhead = np.percentile([http - engine for http, engine, _ in rows], [25, 50, 75]) * 1000
    cpu_ms = {name: np.mean([row[2][name] for row in rows]) * 1000 for name in rows[0][2]}
    print(
        f"{steps} steps of {DATUMS * DATUM_TOKENS} tokens: through HTTP {whole:.1f} ms, engine alone "
        f"{alone:.1f} ms; overhead of a step, quartiles: {overhead.round(1)} ms; CPU ms of a step: "
        + ", ".join(f"{name} {cpu_ms[name]:.1f}" for name in sorted(cpu_ms))
    )
    return StepTimes(through_http=float(whole), engine_alone=float(alone))


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def tokens_of(index: int) -> list[int]:
    return np.random.default_rng(index).integers(3, 96, DATUM_TOKENS + 1).tolist()  # type: ignore[no-any-return]


def sdk_datum(index: int) -> types.Datum:
    tokens = tokens_of(index)
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": [1.0] * DATUM_TOKENS},
    )


def engine_step(service: Service, dtype: torch.dtype) -> Callable[[], None]:
    """The same step by the worker's own engine, without a queue or a wire."""
    torch.set_num_threads(1)
    model = load(str(service.model_folder), name=BASE_MODEL, dtype=dtype)
    run = RunState(Adapter.create(model, rank=8, seed=1))
    data = []
    for index in range(DATUMS):
        tokens = np.array(tokens_of(index))
        inputs = {"target_tokens": tokens[1:], "weights": np.ones(DATUM_TOKENS, np.float32)}
        data.append(Datum(tokens[:-1].astype(np.int32), inputs))
    work = Work(run=run, data=data, loss_fn="cross_entropy", loss_fn_config={})
    adam = AdamParams(learning_rate=1e-4)

    def step() -> None:
        forward_backward(model, [work], max_pass_tokens=Settings.max_pass_tokens)
        optim_step(run, adam)

    return step
