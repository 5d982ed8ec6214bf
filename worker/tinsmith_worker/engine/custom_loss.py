"""A loss of the caller's own: a traced graph, run for each datum by itself.

The loss of a request is the sum over its datums; only logprobs have a gradient. What the SDK does on
its side for the same graph stands in tinker's `run_loss_handle`, and a test holds the two together.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from tinsmith.protocol.errors import TinsmithError
from tinsmith.protocol.loss_graph import GRAPH_KEY, parse
from torch import Tensor

from tinsmith_worker.engine.loss_program import MAX_UNITS, Program
from tinsmith_worker.engine.values import Datum, InvalidInput


def configure(given: Mapping[str, float | str]) -> Program:
    if unknown := given.keys() - {GRAPH_KEY, "loss_id"}:
        raise InvalidInput(f"loss_fn_config: custom knows no {min(unknown)!r}; its key: loss_id.")
    graph = given.get(GRAPH_KEY)
    if not isinstance(graph, str):
        raise InvalidInput("loss_fn_config.loss_id: custom needs a loss of create_custom_loss.")
    return _program(graph)


@lru_cache(maxsize=16)
def _program(graph: str) -> Program:
    try:
        return Program(parse(graph.encode()))
    except TinsmithError as error:
        raise InvalidInput(error.message) from None


def check(data: Sequence[Datum], program: Program) -> None:
    """Refuse by datum what the graph cannot read, and all of it if it would take too long."""
    units = 0
    for index, datum in enumerate(data):
        try:
            units += program.cost([_shape(datum, one.name, one.rank) for one in program.inputs])
        except InvalidInput as error:
            raise InvalidInput(f"data[{index}]: {error}") from None
        if units > MAX_UNITS:
            raise InvalidInput(
                f"data: the custom loss takes too long for this many datums; {index} of them would do. "
                "Send fewer at a time, or compute it in fewer steps."
            )


def loss(logprobs_P: Tensor, inputs: Mapping[str, Tensor], program: Program) -> Tensor:
    total, _ = _run(logprobs_P, inputs, program)
    return total


def report(
    logprobs_P: Tensor, inputs: Mapping[str, Tensor], program: Program
) -> tuple[Tensor, dict[str, float]]:
    """The loss, and the metrics that the graph gives beside it."""
    total, metrics = _run(logprobs_P, inputs, program)
    return total, {key: float(value) for key, value in metrics.items()}


def gradient(logprobs_P: Tensor, inputs: Mapping[str, Tensor], program: Program) -> Tensor:
    """d loss / d log p of a datum."""
    leaf_P = logprobs_P.detach().requires_grad_()
    with torch.enable_grad():
        total, _ = _run(leaf_P, inputs, program)
    if not total.requires_grad:
        raise InvalidInput("graph output: the loss does not depend on logprobs; nothing to learn.")
    try:
        [grad_P] = torch.autograd.grad(total, leaf_P)
    except RuntimeError as error:
        raise InvalidInput(f"graph: its gradient fails: {str(error)[:200]}") from None
    return grad_P


def _run(
    logprobs_P: Tensor, inputs: Mapping[str, Tensor], program: Program
) -> tuple[Tensor, dict[str, Tensor]]:
    shape = inputs["target_tokens"].shape
    bound = [logprobs_P.cpu().view(shape)]
    for one in program.inputs[1:]:
        tensor = inputs[one.name].cpu()
        bound.append(tensor.reshape(()) if one.rank == 0 else tensor)
    total, metrics = program.run(bound)
    return total.float(), metrics


def _shape(datum: Datum, name: str, rank: int) -> tuple[tuple[int, ...], torch.dtype]:
    """Of an input. The wire has no scalars: one of rank 0 comes as a list of one."""
    field = "target_tokens" if name == "logprobs" else name
    if field not in datum.inputs:
        raise InvalidInput(f"loss_fn_inputs: the custom loss reads {field}, and it is missing.")
    array = datum.inputs[field]
    shape = () if rank == 0 and array.size == 1 else array.shape
    if len(shape) != rank:
        raise InvalidInput(
            f"loss_fn_inputs.{field}: shape {list(shape)} is not of rank {rank}, as the custom loss "
            "declares it."
        )
    if name == "logprobs":
        return shape, torch.float32
    return shape, torch.from_numpy(np.empty(0, array.dtype)).dtype
