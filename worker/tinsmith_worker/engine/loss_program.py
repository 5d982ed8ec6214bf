"""Runs a custom loss's graph, node by node, with the functions of `loss_functions` and no others.

Before a graph meets numbers it is run once for their shapes alone, on torch's meta device, where
nothing is allocated: what it would cost is known before it costs anything. Costs are counted and not
timed, so that what was accepted once is accepted again when a run is rebuilt elsewhere.

Graphs run on the CPU whatever the model runs on: an index out of range is an error there, and the end
of the process on a GPU.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tinsmith.protocol.loss_graph import KEYWORDS_OFF, LossGraph, Node, output_of
from torch import Tensor

from tinsmith_worker.engine.loss_functions import FUNCTIONS, METHODS, PLACED, inner_size
from tinsmith_worker.engine.values import InvalidInput

MAX_CELLS = 1 << 25
"""Numbers that the nodes of one datum may hold together."""
MAX_UNITS = 1 << 31
"""What the datums of one request may cost together: about ten seconds of one core."""
NODE_UNITS = 12_000
"""What a node costs whatever its size, in cells read or written."""
MAX_DIMS = 8
MAX_WHOLE = 1 << 62

Shape = tuple[tuple[int, ...], torch.dtype]


class _Device:
    """Stands in a graph for the device that it is run on."""


_HERE = _Device()


@dataclass(frozen=True)
class _Ref:
    slot: int


@dataclass(frozen=True)
class _Step:
    where: str
    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Program:
    """A checked graph, ready to run."""

    def __init__(self, loss: LossGraph) -> None:
        self.inputs = loss.inputs
        nodes = loss.graph.nodes
        slots = {node.name: slot for slot, node in enumerate(nodes)}
        steps = enumerate(nodes[len(loss.inputs) : -1], len(loss.inputs))
        self._steps = [_step(index, node, slots) for index, node in steps]
        loss_node, metrics = output_of(loss.graph)
        self._loss = slots[loss_node]
        self._metrics = {key: slots[name] for key, name in metrics.items()}
        self._costs: dict[tuple[Shape, ...], int] = {}

    def cost(self, shapes: Sequence[Shape]) -> int:
        """In units, for inputs of these shapes. Raises InvalidInput where they cannot be run."""
        key = tuple(shapes)
        if key not in self._costs:
            made = [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in shapes]
            meter = _Meter()
            with torch.no_grad():
                self._run(made, torch.device("meta"), meter)
            if len(self._costs) >= 10_000:
                self._costs.clear()
            self._costs[key] = meter.units
        return self._costs[key]

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one datum, and its metrics."""
        return self._run(inputs, torch.device("cpu"), _Meter())

    def _run(
        self, inputs: Sequence[Tensor], device: torch.device, meter: "_Meter"
    ) -> tuple[Tensor, dict[str, Tensor]]:
        held: list[Any] = list(inputs)
        for step in self._steps:
            args = [_fill(arg, held, device) for arg in step.args]
            kwargs = {key: _fill(arg, held, device) for key, arg in step.kwargs.items()}
            try:
                value = step.function(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - whatever a caller's graph runs into is the caller's
                raise InvalidInput(f"{step.where}: {_first_line(error)}") from None
            meter.charge(step, [*args, *kwargs.values()], value)
            held.append(value)
        loss = _scalar(held[self._loss], "the loss")
        return loss, {key: _scalar(held[slot], key) for key, slot in self._metrics.items()}


class _Meter:
    """Counts what a run costs, and refuses values that have no place in it."""

    def __init__(self) -> None:
        self.units = self.cells = 0

    def charge(self, step: _Step, read: Sequence[Any], value: Any) -> None:
        written = self._cells(value, step.where)
        self.cells += written
        touched = written + sum(_cells_read(one) for one in read)
        self.units += NODE_UNITS + touched + written * inner_size(step.name, read)
        if self.cells > MAX_CELLS:
            raise InvalidInput(
                f"{step.where}: the loss holds more than {MAX_CELLS} numbers for one datum by then."
            )
        if self.units > MAX_UNITS:
            raise InvalidInput(f"{step.where}: the loss takes too long for one datum by then.")

    def _cells(self, value: Any, where: str) -> int:
        if isinstance(value, Tensor):
            if value.ndim > MAX_DIMS or value.is_complex():
                raise InvalidInput(f"{where}: complex numbers and more than {MAX_DIMS} dimensions.")
            return math.prod(value.shape)
        if isinstance(value, tuple | list):
            return len(value) + sum(self._cells(one, where) for one in value)
        if isinstance(value, int) and abs(value) > MAX_WHOLE:
            raise InvalidInput(f"{where}: the number is too large.")
        if isinstance(value, int | float | torch.dtype | torch.device | None):
            return 0
        raise InvalidInput(f"{where}: it gives a {type(value).__name__}, which no loss can use.")


def _cells_read(value: Any) -> int:
    if isinstance(value, Tensor):
        return math.prod(value.shape)
    if isinstance(value, tuple | list):
        return sum(_cells_read(one) for one in value)
    return 0


def _scalar(value: Any, what: str) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim:
        shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InvalidInput(f"graph output: {what} must be a scalar tensor, and is {shape}.")
    return value


def _step(index: int, node: Node, slots: Mapping[str, int]) -> _Step:
    functions = FUNCTIONS if node.op == "call_function" else METHODS
    kwargs = {
        key: _compile(arg, slots) for key, arg in node.kwargs.items() if key not in KEYWORDS_OFF
    }
    if node.target in PLACED:
        kwargs["device"] = _HERE
    return _Step(
        where=f"graph.nodes[{index}] ({node.target})",
        name=node.target.rsplit(".", 1)[-1],
        function=functions[node.target],
        args=tuple(_compile(arg, slots) for arg in node.args),
        kwargs=kwargs,
    )


def _compile(arg: Any, slots: Mapping[str, int]) -> Any:
    """An argument with its references resolved to slots; checked before, so every tag is known."""
    if isinstance(arg, list):
        return [_compile(one, slots) for one in arg]
    if arg == "cpu":
        return _HERE
    if not isinstance(arg, dict):
        return arg
    [(tag, value)] = arg.items()
    match tag:
        case "ref":
            return _Ref(slots[value])
        case "tuple":
            return tuple(_compile(one, slots) for one in value)
        case "dict":
            return {key: _compile(one, slots) for key, one in value.items()}
        case "slice":
            return slice(*(_compile(one, slots) for one in value))
        case "ellipsis":
            return Ellipsis
        case "float":
            return float(value)
        case "device":
            return _HERE
    return getattr(torch, value)  # a dtype, a layout or a memory format, from the protocol's lists


def _fill(arg: Any, held: Sequence[Any], device: torch.device) -> Any:
    if isinstance(arg, _Ref):
        return held[arg.slot]
    if isinstance(arg, _Device):
        return device
    if isinstance(arg, list | tuple):
        return type(arg)(_fill(one, held, device) for one in arg)
    if isinstance(arg, slice):
        return slice(*(_fill(one, held, device) for one in (arg.start, arg.stop, arg.step)))
    if isinstance(arg, dict):
        return {key: _fill(one, held, device) for key, one in arg.items()}
    return arg


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines() or [type(error).__name__]
    return text[0][:200]
