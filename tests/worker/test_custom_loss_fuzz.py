"""Graphs made at random: each is run or refused with a sentence. No crash, no hang, no growth."""

import contextlib
import json
import resource
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tinsmith.protocol.errors import BadRequest
from tinsmith.protocol.loss_graph import GRAPH_KEY, parse
from tinsmith.protocol.loss_operations import ATTRIBUTES, FUNCTIONS, METHODS, WORDS
from tinsmith_worker.engine import custom_loss
from tinsmith_worker.engine.values import Datum, InvalidInput

INPUTS = [("logprobs", 1), ("advantages", 1), ("wide", 2), ("beta", 0)]
LENGTH = 7

numbers = st.one_of(
    st.integers(-9, 9),
    st.sampled_from([0, 1, -1, 1 << 20, 1 << 31, 1 << 40, 1 << 61, -(1 << 61)]),
    st.floats(-4, 4),
    st.sampled_from([1e30, -1e30, 1e-30]),
    st.booleans(),
    st.none(),
)
constants = st.sampled_from(
    [
        {"ellipsis": True},
        {"float": "inf"},
        {"float": "nan"},
        {"dtype": "int64"},
        {"dtype": "float64"},
        {"dtype": "bool"},
        {"dtype": "bfloat16"},
        {"device": "cpu"},
        {"layout": "strided"},
        {"memory_format": "contiguous_format"},
        {"slice": [1, None, 2]},
        {"slice": [None, -1, None]},
        {"tuple": [0, 1]},
        [1, -1],
        [2, 3, 4],
    ]
)
words = st.sampled_from([*sorted(WORDS), *sorted(ATTRIBUTES), "i,i->", "ij->j", "i,j->ij"])
keywords = st.sampled_from(["dim", "keepdim", "dtype", "axis", "value", "descending", "weight"])


refs = st.integers(0, 20).map(lambda place: {"ref": place})
some = st.one_of(refs, refs, numbers, constants, words)
several = st.lists(some, max_size=3)
arg = st.one_of(
    refs,
    st.sampled_from([0, 1, -1, 2, 0.5]),
    some,
    several,
    several.map(lambda given: {"tuple": given}),
)


def _node(op: str, targets: frozenset[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "op": st.just(op),
            "target": st.sampled_from(sorted(targets)),
            "args": st.builds(
                lambda first, more: [first, *more],
                refs,
                st.one_of(st.just([]), st.lists(arg, max_size=1), st.lists(arg, max_size=3)),
            ),
            "kwargs": st.just({}) | st.dictionaries(keywords, arg, max_size=1),
        }
    )


nodes = st.one_of(_node("call_function", FUNCTIONS), _node("call_method", METHODS))
candidates = st.lists(nodes, min_size=1, max_size=12)


def named(value: Any, names: list[str]) -> Any:
    """An argument with its places turned to the names of earlier nodes."""
    if isinstance(value, list):
        return [named(one, names) for one in value]
    if isinstance(value, dict) and isinstance(value.get("ref"), int):
        return {"ref": names[value["ref"] % len(names)]}
    if isinstance(value, dict) and "tuple" in value:
        return {"tuple": named(value["tuple"], names)}
    return value


def grown(given: list[dict[str, Any]]) -> str:
    """A graph of those nodes that run on what came before them; the others are left out."""
    names = [name for name, _ in INPUTS]
    kept = [{"op": "placeholder", "name": name, "target": name} for name in names]
    for node in given:
        own = {key: named(node[key], names) for key in ("args",)}
        own["kwargs"] = {key: named(value, names) for key, value in node["kwargs"].items()}
        one = node | own | {"name": f"n{len(kept)}"}
        if affordable(whole([*kept, one], "logprobs")):
            kept.append(one)
            names.append(one["name"])
    return whole(kept, names[-1])


def whole(nodes: list[dict[str, Any]], last: str) -> str:
    """With a loss that depends on the last node where that is a tensor, and on logprobs anyway."""
    ends: list[dict[str, Any]] = [
        {"op": "call_method", "name": "own", "target": "sum", "args": [{"ref": "logprobs"}]},
        {"op": "call_function", "name": "total", "target": "operator.add"},
    ]
    ends[1]["args"] = [{"ref": "own"}, {"ref": "own"}]
    if last not in dict(INPUTS):
        ends.insert(
            1, {"op": "call_method", "name": "end", "target": "sum", "args": [{"ref": last}]}
        )
        ends[-1]["args"] = [{"ref": "own"}, {"ref": "end"}]
    output = {"tuple": [{"ref": "total"}, {"dict": {"custom/a:sum": {"ref": "own"}}}]}
    ends.append({"op": "output", "name": "output", "target": "output", "args": [output]})
    inputs = [{"name": name, "rank": rank} for name, rank in INPUTS]
    return json.dumps({"inputs": inputs, "graph": {"nodes": [*nodes, *ends]}})


def affordable(text: str) -> bool:
    try:
        custom_loss.check([datum()], custom_loss.configure({GRAPH_KEY: text}))
    except InvalidInput:
        return False
    return True


def datum() -> Datum:
    random = np.random.default_rng(0)
    inputs = {
        "target_tokens": np.arange(LENGTH),
        "advantages": random.normal(size=LENGTH).astype(np.float32),
        "wide": random.normal(size=(LENGTH, 3)).astype(np.float32),
        "beta": np.ones(1, np.float32),
    }
    return Datum(np.arange(LENGTH, dtype=np.int32), inputs)


def run_whole(text: str) -> bool:
    """Whether it ran to its end."""
    one = datum()
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in one.inputs.items()}
    logprobs = torch.linspace(-3.0, -0.1, LENGTH)
    try:
        program = custom_loss.configure({GRAPH_KEY: text})
        custom_loss.check([one], program)
        custom_loss.report(logprobs, tensors, program)
        custom_loss.gradient(logprobs, tensors, program)
    except InvalidInput:
        return False
    return True


@pytest.mark.filterwarnings("ignore")  # torch has things to say of odd arguments
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(candidates)
def test_any_graph_of_allowed_names_ends_soon_and_leaves_no_memory(
    given: list[dict[str, Any]],
) -> None:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    run_whole(grown(given))
    assert time.process_time() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


json_values: Any = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)
SHAPED = st.fixed_dictionaries(
    {
        "inputs": st.just([{"name": "logprobs", "rank": 1}]) | json_values,
        "graph": st.fixed_dictionaries(
            {
                "nodes": st.lists(
                    st.fixed_dictionaries(
                        {
                            "op": st.sampled_from(
                                ["placeholder", "call_function", "call_method", "output"]
                            )
                            | st.text(max_size=5),
                            "name": st.sampled_from(["logprobs", "a", "b"]),
                            "target": st.sampled_from(["torch.exp", "sum", "output", "logprobs"])
                            | st.text(max_size=5),
                            "args": st.lists(json_values, max_size=3) | json_values,
                        },
                        optional={"kwargs": json_values},
                    ),
                    max_size=4,
                )
            }
        ),
    }
)


@settings(max_examples=300, deadline=None)
@given(SHAPED | json_values)
def test_any_json_is_a_graph_or_refused(value: Any) -> None:
    try:
        text = json.dumps(value).encode()
    except UnicodeEncodeError:
        return
    with contextlib.suppress(BadRequest):
        parse(text)
