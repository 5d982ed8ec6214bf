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


@st.composite
def graphs(draw: st.DrawFn) -> str:
    """Nodes that call what is allowed with whatever there is: most fail, many do not."""
    names = [name for name, _ in INPUTS]
    nodes: list[dict[str, Any]] = [
        {"op": "placeholder", "name": name, "target": name} for name in names
    ]

    def refs() -> Any:
        return st.sampled_from(names).map(lambda name: {"ref": name})

    for index in range(draw(st.integers(1, 8))):
        some = st.one_of(refs(), numbers, constants, words, refs())
        several = st.lists(some, max_size=3)
        arg = st.one_of(some, some, several, several.map(lambda given: {"tuple": given}))
        method = draw(st.booleans())
        nodes.append(
            {
                "op": "call_method" if method else "call_function",
                "name": f"n{index}",
                "target": draw(st.sampled_from(sorted(METHODS if method else FUNCTIONS))),
                "args": [draw(refs()), *draw(st.lists(arg, max_size=3))],
                "kwargs": draw(st.dictionaries(keywords, arg, max_size=1)),
            }
        )
        names.append(f"n{index}")
    last = draw(st.sampled_from(names[4:]))
    total = {"op": "call_method", "name": "total", "target": "sum", "args": [{"ref": last}]}
    output = {"tuple": [{"ref": "total"}, {"dict": {"custom/a:sum": {"ref": "total"}}}]}
    nodes += [total, {"op": "output", "name": "output", "target": "output", "args": [output]}]
    inputs = [{"name": name, "rank": rank} for name, rank in INPUTS]
    return json.dumps({"inputs": inputs, "graph": {"nodes": nodes}})


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
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(graphs())
def test_any_graph_of_allowed_names_ends_soon_and_leaves_no_memory(text: str) -> None:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    run_whole(text)
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
