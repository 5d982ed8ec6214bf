"""A custom loss gives what the SDK computes from the same graph, and its graph can do nothing else."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from tinsmith.protocol import loss_operations
from tinsmith.protocol.errors import TinsmithError
from tinsmith.protocol.loss_graph import GRAPH_KEY, MAX_NODES, parse
from tinsmith_worker.engine import custom_loss, loss_functions
from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.base_model import load as load_model
from tinsmith_worker.engine.optimizer import RunState
from tinsmith_worker.engine.training import Outcome, Work, forward_backward
from tinsmith_worker.engine.values import Datum, InvalidInput

from tests.worker.tiny_models import VOCAB, save
from tests.worker.traced_losses import LOSSES, graph_of, random_inputs, sdk_result, trace


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_model(str(save("llama", tmp_path_factory.mktemp("llama"))), name="tiny")


def fresh(model: BaseModel) -> RunState:
    run = RunState(Adapter.create(model, rank=4, seed=1))
    torch.manual_seed(0)
    run.adapter.row.normal_(0, 0.02)
    run.adapter.changed()
    return run


def work(run: RunState, data: list[Datum], graph: str, **more: Any) -> Work:
    return Work(
        run=run,
        data=data,
        loss_fn="custom",
        loss_fn_config={"loss_id": "l", GRAPH_KEY: graph},
        **more,
    )


def datums(name: str) -> list[Datum]:
    random = np.random.default_rng(7)
    return [
        Datum(
            random.integers(0, VOCAB, length).astype(np.int32), random_inputs(name, length, length)
        )
        for length in (9, 4, 6, 9, 5)
    ]


@pytest.mark.parametrize("max_pass_tokens", [4096, 10], ids=["one pass", "many"])
@pytest.mark.parametrize("name", LOSSES)
def test_it_teaches_what_the_sdk_would_teach(
    model: BaseModel, name: str, max_pass_tokens: int
) -> None:
    handle, data = trace(name), datums(name)
    run, twin = fresh(model), fresh(model)
    [found] = forward_backward(
        model, [work(run, data, graph_of(handle))], max_pass_tokens=max_pass_tokens
    )
    assert found.error is None
    loss, metrics, gradients = sdk_result(handle, data, found.logprobs)
    assert found.metrics["loss:sum"] == pytest.approx(loss, rel=1e-6)
    for key, value in metrics.items():
        assert found.metrics[key] == pytest.approx(value, rel=1e-6)
    surrogate = [
        Datum(one.tokens, {"target_tokens": one.inputs["target_tokens"], "weights": -gradient})
        for one, gradient in zip(data, gradients, strict=True)
    ]
    forward_backward(
        model,
        [Work(run=twin, data=surrogate, loss_fn="cross_entropy", loss_fn_config={})],
        max_pass_tokens=max_pass_tokens,
    )
    assert run.gradient is not None
    assert twin.gradient is not None
    torch.testing.assert_close(run.gradient, twin.gradient, rtol=1e-5, atol=1e-6)


def test_forward_only_gives_values_and_no_gradient(model: BaseModel) -> None:
    run = fresh(model)
    [found] = forward_backward(
        model,
        [work(run, datums("ppo"), graph_of(trace("ppo")), forward_only=True)],
        max_pass_tokens=4096,
    )
    assert found.metrics["custom/tokens:sum"] == 33.0
    assert not run.has_gradient


# What is refused


def node(op: str, name: str, target: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return {"op": op, "name": name, "target": target, "args": list(args), "kwargs": kwargs}


LOGPROBS = node("placeholder", "logprobs", "logprobs")
REF = {"ref": "logprobs"}


def graph(*nodes: dict[str, Any], last: str | None = None, metrics: Any = None) -> str:
    output = {"tuple": [{"ref": last or nodes[-1]["name"]}, {"dict": metrics or {}}]}
    every = [LOGPROBS, *nodes, node("output", "output", "output", output)]
    inputs = [{"name": "logprobs", "rank": 1}]
    return json.dumps({"inputs": inputs, "graph": {"format": 1, "nodes": every}})


def call(target: str, *args: Any, name: str = "x", **kwargs: Any) -> dict[str, Any]:
    op = "call_function" if "." in target or target == "getattr" else "call_method"
    return node(op, name, target, *args, **kwargs)


SUM = call("sum", {"ref": "x"}, name="y")


@pytest.mark.parametrize(
    ("nodes", "field"),
    [
        ([call("os.system", "rm")], "os.system"),
        ([call("torch.load", "x")], "torch.load"),
        ([call("torch.rand_like", REF)], "rand_like"),
        ([call("item", REF)], "item"),
        ([call("add_", REF, 1)], "add_"),
        ([call("as_strided", REF, [9], [9])], "as_strided"),
        ([call("torch.exp", REF, out=REF)], "out"),
        ([call("torch.nn.functional.relu", REF, inplace=True)], "inplace"),
        ([call("getattr", REF, "__class__")], "__class__"),
        ([call("getattr", REF, "grad_fn")], "grad_fn"),
        ([call("to", REF, "cuda")], "cuda"),
        ([call("to", REF, {"device": "cuda"})], "device"),
        ([call("exp", {"ref": "later"})], "later"),
        ([call("torch.exp", {"eval": "1"})], "one key"),
        ([node("call_module", "x", "net", REF)], "call_module"),
        ([node("get_attr", "x", "weight")], "get_attr"),
        ([call("torch.functional.einsum", "...i->", REF)], "equation"),
        ([call("mul", REF, 1 << 63)], "graph"),
    ],
)
def test_what_is_not_on_the_list_is_refused_by_node(
    nodes: list[dict[str, Any]], field: str
) -> None:
    with pytest.raises(TinsmithError, match=field):
        parse(graph(*nodes).encode())


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (graph(call("sum", REF), metrics={"loss:sum": REF}), "metric"),
        (graph(call("sum", REF), last="nobody"), "nobody"),
        (json.dumps({"inputs": [], "graph": {"format": 1, "nodes": []}}), "inputs"),
        ("[" * 5000, "parse"),
        ("null", "parse"),
    ],
)
def test_a_graph_that_is_none_is_refused(text: str, field: str) -> None:
    with pytest.raises(TinsmithError, match=field):
        parse(text.encode())


@pytest.mark.parametrize(
    ("nodes", "field"),
    [
        ([call("operator.mul", "mean", 10**9)], "number"),
        ([call("operator.mul", [1], 10**9)], "number"),
        ([call("operator.pow", 9, 10**6)], "power"),
        ([call("expand", REF, [1 << 40, 50])], "numbers"),
        ([call("repeat", REF, 1 << 30)], ""),
        ([call("torch.zeros", 1 << 50)], "numbers"),
        ([call("new_zeros", REF, [1 << 28])], "numbers"),
        (
            [
                call("repeat", REF, 200, 1, name="w"),
                call("torch.functional.einsum", "ab,cd->", {"ref": "w"}, {"ref": "w"}),
                SUM,
            ],
            "multiply",
        ),
        ([call("repeat", REF, 4000, name="w"), call("torch.unbind", {"ref": "w"})], "tensors"),
        ([call("repeat", REF, 4000, name="w"), call("split", {"ref": "w"}, 1)], "tensors"),
        ([call("repeat", REF, 1000, name="w"), call("torch.chunk", {"ref": "w"}, 2000)], "tensors"),
        ([call("torch.nn.functional.pad", REF, {"tuple": [0, 1 << 30]})], "numbers"),
        ([call("math.exp", REF)], "math"),
        ([call("torch.matmul", REF, 3), SUM], "matmul"),
        ([call("exp", REF)], "scalar"),
        ([call("size", REF, 0)], "scalar"),
    ],
)
def test_what_would_grow_or_fail_is_refused_before_any_pass(
    nodes: list[dict[str, Any]], field: str
) -> None:
    program = custom_loss.configure({GRAPH_KEY: graph(*nodes)})
    with pytest.raises(InvalidInput, match=rf"data\[0\].*{field}"):
        custom_loss.check([targets(50)], program)


def targets(length: int) -> Datum:
    return Datum(np.ones(length, np.int32), {"target_tokens": np.ones(length, np.int64)})


def test_many_long_graphs_are_refused_as_too_long_at_once() -> None:
    steps = [
        call("exp", {"ref": f"x{i - 1}" if i else "logprobs"}, name=f"x{i}")
        for i in range(MAX_NODES - 3)
    ]
    text = graph(*steps, call("sum", {"ref": steps[-1]["name"]}, name="y"))
    program = custom_loss.configure({GRAPH_KEY: text})
    with pytest.raises(InvalidInput, match="too long for this many"):
        custom_loss.check([targets(5)] * 10_000, program)
    with pytest.raises(TinsmithError, match="nodes"):
        parse(graph(*steps, *[call("sum", REF, name=f"s{i}") for i in range(9)]).encode())


def test_an_index_out_of_range_fails_its_own_request_only(model: BaseModel) -> None:
    # The index is a value, so only the run itself can meet it.
    wrong = graph(
        call("torch.ones_like", REF, dtype={"dtype": "int64"}, name="one"),
        call("operator.mul", {"ref": "one"}, 1000, name="far"),
        call("gather", REF, 0, {"ref": "far"}, name="x"),
        SUM,
    )
    bad, good = fresh(model), fresh(model)
    found = forward_backward(
        model,
        [
            work(bad, datums("ppo"), wrong),
            work(good, datums("ppo"), graph_of(trace("ppo"))),
        ],
        max_pass_tokens=4096,
    )
    assert found[0].error is not None
    assert "gather" in found[0].error
    assert found[1].error is None
    assert (bad.has_gradient, good.has_gradient) == (False, True)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (graph(call("detach", REF, name="x"), SUM), "does not depend"),
        (graph(call("log", REF, name="x"), SUM), "not finite"),
    ],
)
def test_a_loss_without_a_gradient_leaves_none(model: BaseModel, text: str, field: str) -> None:
    run = fresh(model)
    [found] = forward_backward(model, [work(run, datums("ppo"), text)], max_pass_tokens=4096)
    assert isinstance(found, Outcome)
    assert field in (found.error or "")
    assert not run.has_gradient


def test_inputs_are_held_to_their_ranks() -> None:
    program = custom_loss.configure({GRAPH_KEY: graph_of(trace("candidates"))})
    inputs = random_inputs("candidates", 3, 0)
    one = Datum(np.ones(3, np.int32), inputs | {"weights": np.ones(3, np.float32)})
    with pytest.raises(InvalidInput, match=r"weights.*rank 2"):
        custom_loss.check([one], program)
    del one.inputs["beta"]
    with pytest.raises(InvalidInput, match=r"weights.*rank 2|beta"):
        custom_loss.check([one], program)


def test_every_name_on_the_list_has_a_function_and_no_other_has() -> None:
    assert set(loss_functions.FUNCTIONS) == loss_operations.FUNCTIONS
    assert set(loss_functions.METHODS) == loss_operations.METHODS
    for names in (loss_operations.FUNCTIONS, loss_operations.METHODS):
        for name in names:
            last = name.rsplit(".", 1)[-1]
            assert not last.startswith("__")
            assert not (last.endswith("_") and last not in ("and_", "or_")), name
            assert not any(word in last for word in ("rand", "strided", "save", "load", "backward"))
