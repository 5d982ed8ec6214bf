"""What comes beside a forward_backward of SmolLM2-135M: memory, the optimizer's step, the hand-over
to the sampler.
"""

import tempfile
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tinsmith_worker.engine.adapter import Adapter

from benchmarks import engine_side, peft_side, workloads
from benchmarks.engine_side import Ours
from benchmarks.harness import (
    Row,
    Variant,
    asked_rounds,
    finish,
    interleave,
    one_thread,
    print_timings,
)
from benchmarks.memory import peak_bytes
from tests.models import prepared_smollm2

FOLDER = prepared_smollm2()
BF16 = torch.bfloat16


def memory() -> list[Row]:
    """Above the model, a token of a batch with little padding. One round: a peak does not waver."""
    batch = workloads.even_sft()
    ours = peak_bytes(partial(engine_side.training_step, FOLDER, BF16, batch))
    rows = []
    for name, at_best, floor in (("padded", False, 3.0), ("at best", True, None)):
        step = partial(peft_side.training_step, FOLDER, BF16, batch, at_best=at_best)
        other = peak_bytes(step)
        mine, theirs = (peak / batch.num_tokens / 1024 for peak in (ours, other))
        title = f"memory: above the model, bf16 / peft {name}"
        rows.append(Row(title, mine, theirs, "KiB/token", theirs / mine, floor))
    return rows


def optimizer(ours: Ours, rounds: int) -> list[Row]:
    """A step of one adapter beside a forward_backward; steps of 8 adapters together and in turn."""
    batch, few = workloads.ragged_sft(), workloads.tenants(8, 16)

    def gather() -> None:
        ours.forward_backward_together(few)

    def in_turn() -> None:
        for run in ours.runs:
            ours.optimizer_steps([run])

    first = ours.runs[:1]
    comparison = interleave(
        [
            Variant("step", partial(ours.optimizer_steps, first), gather),
            Variant("forward_backward", partial(ours.forward_backward, batch), ours.zero_grad),
            Variant("8 steps", ours.optimizer_steps, gather),
            Variant("8 steps in turn", in_turn, gather),
        ],
        rounds=rounds,
    )
    print_timings("optimizer, 9.8 M parameters", comparison)
    return [
        comparison.row(
            "costs: optimizer step / a ragged bf16 forward_backward",
            ours="step",
            other="forward_backward",
            floor=20.0,
        ),
        comparison.row("switch: 8 optimizer steps in one call", ours="8 steps", other="8 steps in turn"),
    ]  # fmt: skip


def hand_over(ours: Ours, rounds: int) -> list[Row]:
    """From the trainer to the sampler: a copy in memory, and what a file between them would cost."""
    size = ours.runs[0].adapter.layout.size

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "adapter_model.safetensors")

        def through_file() -> Adapter:
            adapter = ours.runs[0].adapter
            save_file({name: one.contiguous() for name, one in adapter.parameters().items()}, path)
            return Adapter.from_tensors(ours.model, adapter.rank, adapter.trains, load_file(path))

        comparison = interleave(
            [
                Variant("ours", ours.snapshot),
                Variant("through a file", through_file),
                Variant("with moments", ours.runs[0].copied),
            ],
            rounds=3 * rounds,
        )
    print_timings(f"hand-over, {size / 1e6:.1f} M parameters", comparison)
    per_10m = {
        name: comparison.cpu_seconds(name) * 1e3 * 1e7 / size for name in ("ours", "with moments")
    }
    return [
        Row.at_most("costs: snapshot for sampling", per_10m["ours"], 10.0, "CPU ms/10 M"),
        Row.at_most("costs: snapshot with Adam's moments", per_10m["with moments"], 30.0, "CPU ms/10 M"),
        comparison.row("switch: hand-over without a file", ours="ours", other="through a file"),
    ]  # fmt: skip


def main() -> None:
    one_thread()
    rounds = asked_rounds(3)
    rows = memory()
    ours = Ours(FOLDER, BF16, 8)
    finish([*rows, *optimizer(ours, rounds), *hand_over(ours, rounds)])


if __name__ == "__main__":
    main()
