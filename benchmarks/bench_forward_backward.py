"""forward_backward on SmolLM2-135M against the matrix products that it cannot do without.

The limit is measured in the same run: each frozen weight of the model times as many rows, once for
the forward and once for the gradient of its input; the head once more, for it is computed again.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.training import RunState, Work, forward_backward
from tinsmith_worker.engine.values import Datum

from tests.models import prepared_smollm2

TOKENS = 768
REPEATS = 3


def best_seconds(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def datum(length: int, random: np.random.Generator) -> Datum:
    tokens = random.integers(0, 49_000, length + 1)
    inputs = {"target_tokens": tokens[1:], "weights": np.ones(length, np.float32)}
    return Datum(tokens[:-1].astype(np.int32), inputs)


def limit_seconds(model: BaseModel) -> float:
    trains = {"attn": True, "mlp": True, "unembed": True}
    total = 0.0
    for shape in {model.shape(path) for path in model.paths(trains)}:
        count = sum(model.shape(path) == shape for path in model.paths(trains))
        weight, rows = torch.randn(*shape), torch.randn(TOKENS, shape[1])
        gradient = torch.randn(TOKENS, shape[0])
        forward = best_seconds(lambda w=weight, x=rows: x @ w.T)  # type: ignore[misc]
        backward = best_seconds(lambda w=weight, g=gradient: g @ w)  # type: ignore[misc]
        again = forward if shape[0] == model.vocab_size else 0.0
        total += count * (forward + backward + again)
    return total


def main() -> None:
    torch.manual_seed(0)
    model = BaseModel.load(str(prepared_smollm2()), name="smollm2")
    limit = limit_seconds(model)
    print(
        f"threads {torch.get_num_threads()}, {TOKENS} tokens; matrix products alone: {limit:.2f} s"
    )
    for length in (12, 64, 384):
        run = RunState(Adapter.create(model, rank=16, seed=1))
        random = np.random.default_rng(0)
        data = [datum(length, random) for _ in range(TOKENS // length)]
        work = Work(run=run, data=data, loss_fn="cross_entropy", loss_fn_config={})
        seconds = best_seconds(lambda w=work: forward_backward(model, [w], max_pass_tokens=4096))  # type: ignore[misc]
        print(
            f"{len(data):3} datums of {length:3}: {seconds:.2f} s, {TOKENS / seconds:.0f} tokens/s, "
            f"{limit / seconds:.0%} of the limit"
        )


if __name__ == "__main__":
    main()
