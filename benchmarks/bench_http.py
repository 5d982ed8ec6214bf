"""Through HTTP with the official SDK: a step of SmolLM2-135M beside the engine alone, and 1,000 held
samples. Wall time, for a wire is waited for; `http_load` shows more of both.
"""

import gc
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import Row, asked_rounds, finish, one_thread
from benchmarks.http_load import MANY, measure_samples
from benchmarks.http_service import running_service
from benchmarks.http_step import DATUM_TOKENS, DATUMS, measure_step
from tests.models import prepared_smollm2


def step(steps: int) -> Row:
    """In bf16, whose shorter step leaves the wire the larger share."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running_service(Path(folder), prepared_smollm2(), TINSMITH_DTYPE="bfloat16") as service,
    ):
        times = measure_step(service, steps=steps, warm_up=1, dtype=torch.bfloat16)
    return Row(
        name=f"http: engine alone / a step of {DATUMS * DATUM_TOKENS} tokens through the SDK",
        ours=times.through_http,
        other=times.engine_alone,
        unit="wall ms",
        ratio=times.engine_alone / times.through_http,
        floor=1 / 1.1,
    )


def held_samples() -> Row:
    with tempfile.TemporaryDirectory() as folder, running_service(Path(folder)) as service:
        added = np.percentile(measure_samples(service), 99)
    name = f"http: added latency of {MANY} held samples, 99th percentile"
    return Row.at_most(name, float(added) * 1e3, 1e3, "wall ms")


def main() -> None:
    one_thread()
    gc.freeze()  # torch and the SDK are much to search for garbage while others are timed
    finish([step(asked_rounds(3)), held_samples()])


if __name__ == "__main__":
    main()
