"""A loss of one's own, traced by torch.fx into a graph that the service runs in one pass.

The service has an allow-list of operations; it is looked at here already, so that what it would
refuse is told before anything is sent. torch is imported when a loss is traced, not before.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tinsmith.protocol.errors import BadRequest
from tinsmith.protocol.loss_graph import Graph, LossGraph, LossInput, Node, check, output_of

PerDatumLoss = Callable[..., Any]
"""(logprobs, *inputs by name) -> (scalar loss, {"custom/<name>:sum": scalar})."""


@dataclass(frozen=True)
class LossHandle:
    """A loss that the service holds; runs of the same session may be trained with it."""

    name: str
    inputs: tuple[LossInput, ...]
    session_id: str
    loss_id: str


def trace_loss(fn: PerDatumLoss, input_ranks: Mapping[str, int]) -> LossGraph:
    """ValueError, naming what it is about, when the service could not run it."""
    import torch.fx

    where = f"create_custom_loss({fn.__name__})"
    inputs = _inputs(fn, input_ranks, where)
    try:
        traced = torch.fx.symbolic_trace(fn)
    except Exception as error:  # whatever the function does with a tensor that has no values
        raise ValueError(
            f"{where}: torch.fx cannot trace it: {error} A loss may not branch on values."
        ) from error
    nodes = [_node(node, where) for node in traced.graph.nodes]
    loss = LossGraph(inputs=inputs, graph=Graph(nodes=nodes))
    try:
        check(loss)
        output_of(loss.graph)
    except BadRequest as error:
        raise ValueError(f"{where}: {error}") from None
    return loss


def _inputs(fn: PerDatumLoss, input_ranks: Mapping[str, int], where: str) -> list[LossInput]:
    parameters = inspect.signature(fn).parameters.values()
    for one in parameters:
        if one.kind is not one.POSITIONAL_OR_KEYWORD or one.default is not one.empty:
            raise ValueError(f"{where}: {one.name} must be a plain parameter without a default.")
    names = [one.name for one in parameters]
    if set(names) != set(input_ranks):
        raise ValueError(f"{where}: input_ranks must give a rank for each of {', '.join(names)}.")
    for name in names:
        if input_ranks[name] not in (0, 1, 2):
            raise ValueError(f"{where}: input_ranks[{name!r}] must be 0, 1 or 2.")
    return [LossInput(name=name, rank=input_ranks[name]) for name in names]  # type: ignore[arg-type]


def _node(node: Any, where: str) -> Node:
    return Node(
        op=node.op,
        name=node.name,
        target=_function_name(node.target) if node.op == "call_function" else str(node.target),
        args=[_argument(one, where) for one in node.args],
        kwargs={name: _argument(one, where) for name, one in node.kwargs.items()},
    )


def _function_name(function: Any) -> str:
    """As torch.fx spells it, but for Python's operators, which the wire knows by their public module."""
    from torch.fx.node import _get_qualified_name

    name = _get_qualified_name(function)
    return "operator." + name.removeprefix("_operator.") if name.startswith("_operator.") else name


def _argument(value: Any, where: str) -> Any:
    """JSON for an argument of a node (wire: 7.2)."""
    import torch.fx

    match value:
        case torch.fx.Node():
            return {"ref": value.name}
        case float() if not math.isfinite(value):
            return {"float": str(value)}
        case None | bool() | int() | float() | str():
            return value
        case list():
            return [_argument(one, where) for one in value]
        case tuple():
            return {"tuple": [_argument(one, where) for one in value]}
        case dict():
            return {"dict": {str(key): _argument(one, where) for key, one in value.items()}}
        case slice():
            ends = (value.start, value.stop, value.step)
            return {"slice": [_argument(one, where) for one in ends]}
    if value is Ellipsis:
        return {"ellipsis": True}
    for kind in ("dtype", "device", "layout", "memory_format"):
        if isinstance(value, getattr(torch, kind)):
            return {kind: str(value).removeprefix("torch.")}
    raise ValueError(f"{where}: an argument of type {type(value).__name__} cannot be sent.")


def check_inputs(handle: LossHandle, loss_fn_inputs: Mapping[str, Any], where: str) -> None:
    """ValueError when a datum lacks what the loss reads, or has it in another rank."""
    for one in handle.inputs:
        key = "target_tokens" if one.name == "logprobs" else one.name
        if key not in loss_fn_inputs:
            raise ValueError(f"{where}.loss_fn_inputs.{key}: the loss {handle.name} reads it.")
        rank = loss_fn_inputs[key].to_numpy().ndim
        if rank != one.rank:
            raise ValueError(
                f"{where}.loss_fn_inputs.{key}: rank {rank}; {handle.name} declared {one.rank}."
            )
