"""A custom loss as it travels: a traced graph, node by node, and what such a graph may hold.

Pure data. Names are checked against lists here, so that a loss is refused when it is created; what a
name does is the worker's, which has a function for each of these and for nothing else.
"""

import re
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from tinsmith.protocol.bodies import Body
from tinsmith.protocol.errors import BadRequest
from tinsmith.protocol.loss_operations import ATTRIBUTES, DTYPES, FUNCTIONS, METHODS, WORDS

GRAPH_KEY = "loss_graph"
"""The config key under which the API process puts the graph that loss_id names."""
MAX_NODES = 2000
MAX_INPUTS = 16
MAX_BYTES = 256 << 10
MAX_NESTING = 8
MAX_NUMBER = 1 << 62
KEYWORDS_OFF = frozenset({"out", "generator", "names", "pin_memory", "inplace"})
"""Tracing writes them out; only as None or False, and then they are left out."""
_CONSTANTS = {
    "float": frozenset({"inf", "-inf", "nan"}),
    "dtype": DTYPES,
    "device": frozenset({"cpu"}),
    "layout": frozenset({"strided"}),
    "memory_format": frozenset({"contiguous_format", "preserve_format"}),
}
_TAGS = frozenset({"ref", "tuple", "dict", "slice", "ellipsis", *_CONSTANTS})
_INPUT_NAME = re.compile(r"[a-z_][a-z0-9_]{0,63}")
_METRIC = re.compile(r"custom/[a-z0-9_./-]{1,64}:(sum|mean)")
_EINSUM = re.compile(r"[A-Za-z, ]{1,100}(->[A-Za-z ]{0,50})?")


class LossInput(Body, kw_only=True, frozen=True):
    name: str
    rank: Literal[0, 1, 2]


class Node(Body, kw_only=True, frozen=True):
    op: str
    name: str
    target: str
    args: list[Any] = msgspec.field(default_factory=list)
    kwargs: dict[str, Any] = msgspec.field(default_factory=dict)


class Graph(Body, kw_only=True, frozen=True):
    nodes: list[Node]
    format: Literal[1] = 1


class LossGraph(Body, kw_only=True, frozen=True):
    """Its inputs bind to the placeholders in order; the first is the model's logprobs."""

    inputs: list[LossInput]
    graph: Graph


class CreateCustomLoss(LossGraph, kw_only=True, frozen=True):
    session_id: str
    custom_loss_seq_id: int
    name: str = "loss"


def parse(data: bytes) -> LossGraph:
    """Decoded and checked; raises BadRequest by node."""
    if len(data) > MAX_BYTES:
        raise BadRequest(f"graph: {len(data)} bytes are more than {MAX_BYTES}.")
    try:
        loss = msgspec.json.decode(data, type=LossGraph)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"graph: it does not parse: {error}") from None
    check(loss)
    return loss


def check(loss: LossGraph) -> None:
    """Refuse whatever the interpreter would not run. Raises BadRequest by node."""
    _check_inputs(loss)
    nodes = loss.graph.nodes
    if not 1 <= len(nodes) <= MAX_NODES:
        raise BadRequest(f"graph.nodes: {len(nodes)} nodes are not from 1 to {MAX_NODES}.")
    known: set[str] = set()
    for index, node in enumerate(nodes):
        where = f"graph.nodes[{index}] ({node.op} {node.target[:60]})"
        if node.name in known:
            raise BadRequest(f"{where}: the name {node.name[:60]!r} is used twice.")
        _check_node(node, known, where)
        known.add(node.name)
    if nodes[-1].op != "output" or any(node.op == "output" for node in nodes[:-1]):
        raise BadRequest("graph.nodes: the last node, and no other, must be the output.")
    places = [node for node in nodes if node.op == "placeholder"]
    if len(places) != len(loss.inputs) or nodes[: len(places)] != places:
        raise BadRequest("graph.nodes: it must begin with one placeholder for each input.")


def output_of(graph: Graph) -> tuple[str, dict[str, str]]:
    """The node that is the loss, and those that are metrics by their key."""
    try:
        [pair] = graph.nodes[-1].args
        loss_node, metrics = pair["tuple"] if isinstance(pair, dict) else pair
        named = {key: value["ref"] for key, value in metrics["dict"].items()}
        return loss_node["ref"], named
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BadRequest(
            "graph output: it must be (loss, {metric: tensor}), all of them nodes."
        ) from None


def _check_inputs(loss: LossGraph) -> None:
    names = [one.name for one in loss.inputs]
    if not 1 <= len(names) <= MAX_INPUTS or len(set(names)) != len(names):
        raise BadRequest(f"inputs: give 1 to {MAX_INPUTS} of different names.")
    for name in names:
        if not _INPUT_NAME.fullmatch(name):
            raise BadRequest(f"inputs: {name[:80]!r} is not a lowercase name.")
    if names[0] != "logprobs" or loss.inputs[0].rank == 0:
        raise BadRequest("inputs: the first must be logprobs, of rank 1 or 2.")


def _check_node(node: Node, known: set[str], where: str) -> None:
    match node.op:
        case "placeholder":
            return
        case "call_function":
            allowed = FUNCTIONS
        case "call_method":
            allowed = METHODS
        case "output":
            _check_output(node, known, where)
            return
        case _:
            raise BadRequest(f"{where}: nodes of this kind are not run here.")
    if node.target not in allowed:
        raise BadRequest(
            f"{where}: this operation is not on the list of what a custom loss may use; "
            "write it with others, or pass the loss to forward_backward_custom as a function."
        )
    if node.op == "call_method" and not (node.args and _is_ref(node.args[0])):
        raise BadRequest(f"{where}: a method needs the node that it is called on.")
    words = _words_of(node, where)
    for position, arg in enumerate(node.args):
        _check_arg(arg, known, words, f"{where} argument {position}", 0)
    for key, arg in node.kwargs.items():
        if key in KEYWORDS_OFF and arg not in (None, False):
            raise BadRequest(f"{where}: {key!r} cannot be used in a custom loss.")
        _check_arg(arg, known, words, f"{where} argument {key[:40]}", 0)


def _words_of(node: Node, where: str) -> frozenset[str]:
    """The texts that this node may have among its arguments."""
    if node.target.rsplit(".", 1)[-1] == "einsum":
        equation = node.args[0] if node.args else None
        if not isinstance(equation, str) or not _EINSUM.fullmatch(equation):
            raise BadRequest(f"{where}: the first argument must be an equation without '...'.")
        return WORDS | {equation}
    if node.target == "getattr":
        return ATTRIBUTES
    return WORDS


def _check_arg(arg: Any, known: set[str], words: frozenset[str], where: str, depth: int) -> None:
    if depth > MAX_NESTING:
        raise BadRequest(f"{where}: nested too deep.")
    if isinstance(arg, str):
        if arg not in words:
            raise BadRequest(f"{where}: the text {arg[:40]!r} cannot be used here.")
    elif isinstance(arg, int) and not isinstance(arg, bool):
        if abs(arg) > MAX_NUMBER:
            raise BadRequest(f"{where}: the number is too large.")
    elif isinstance(arg, list):
        for one in arg:
            _check_arg(one, known, words, where, depth + 1)
    elif isinstance(arg, dict):
        for one in _inside(arg, known, where):
            _check_arg(one, known, words, where, depth + 1)


def _inside(arg: dict[str, Any], known: set[str], where: str) -> Iterator[Any]:
    """What a tagged argument holds that is an argument itself."""
    if len(arg) != 1 or (tag := next(iter(arg))) not in _TAGS:
        raise BadRequest(f"{where}: an object must have one key, of {', '.join(sorted(_TAGS))}.")
    value = arg[tag]
    if tag == "ref":
        if not isinstance(value, str) or value not in known:
            raise BadRequest(f"{where}: there is no earlier node {str(value)[:60]!r}.")
    elif tag in _CONSTANTS:
        if not isinstance(value, str) or value not in _CONSTANTS[tag]:
            allowed = ", ".join(sorted(_CONSTANTS[tag]))
            raise BadRequest(f"{where}: {tag} {str(value)[:40]!r} is not one of {allowed}.")
    elif tag == "dict" and isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list) and (tag == "tuple" or (tag == "slice" and len(value) == 3)):
        yield from value
    elif tag != "ellipsis":
        raise BadRequest(f"{where}: {tag} does not hold what it should.")


def _is_ref(arg: Any) -> bool:
    return isinstance(arg, dict) and "ref" in arg


def _check_output(node: Node, known: set[str], where: str) -> None:
    loss, metrics = output_of(Graph(nodes=[node]))
    for key in metrics:
        if not _METRIC.fullmatch(key):
            raise BadRequest(f"{where}: metric {key[:80]!r} is not custom/<name>:sum or :mean.")
    for name in (loss, *metrics.values()):
        if not isinstance(name, str) or name not in known:
            raise BadRequest(f"{where}: there is no earlier node {str(name)[:60]!r}.")
