"""Plain HTTP: what curl does, and what an enemy would."""

import subprocess
import sys

import httpx
import pytest
import zstandard
from tinsmith.protocol import wire_pb2 as pb

from tests.contract.conftest import BASE_MODEL, Service

PROTOBUF = {"Content-Type": "application/x-protobuf"}


@pytest.fixture
def http(service: Service) -> httpx.Client:
    return service.http()


def new_run(http: httpx.Client) -> str:
    session = http.post("/create_session", json={}).json()["session_id"]
    lora = {"rank": 2, "seed": 1}
    body = {
        "session_id": session,
        "model_seq_id": 0,
        "base_model": BASE_MODEL,
        "lora_config": lora,
    }
    stub = http.post("/create_model", json=body).json()
    assert result(http, stub["request_id"])["model_id"] == stub["model_id"]
    return str(stub["model_id"])


def result(http: httpx.Client, request_id: str) -> dict[str, object]:
    while True:
        answer = http.post("/retrieve_future", json={"request_id": request_id})
        if answer.status_code != 408:
            assert answer.status_code == 200, answer.text
            return dict(answer.json())


def forward_backward(run: str, seq_id: int, tokens: list[int]) -> dict[str, object]:
    datum = {
        "model_input": {"chunks": [{"tokens": tokens[:-1]}]},
        "loss_fn_inputs": {
            "target_tokens": {"data": tokens[1:], "dtype": "int64"},
            "weights": {"data": [1.0] * (len(tokens) - 1), "dtype": "float32"},
        },
    }
    given = {"data": [datum], "loss_fn": "cross_entropy", "loss_fn_config": None}
    return {"model_id": run, "seq_id": seq_id, "forward_backward_input": given}


def step(run: str, seq_id: int, **adam: object) -> dict[str, object]:
    return {"model_id": run, "seq_id": seq_id, "adam_params": adam}


@pytest.mark.parametrize("rank", [0, 10_000])
def test_an_impossible_rank_is_refused_at_once(http: httpx.Client, rank: int) -> None:
    session = http.post("/create_session", json={}).json()["session_id"]
    body = {
        "session_id": session,
        "model_seq_id": 0,
        "base_model": BASE_MODEL,
        "lora_config": {"rank": rank},
    }
    answer = http.post("/create_model", json=body)
    assert answer.status_code == 400
    assert "lora_config.rank" in answer.json()["detail"]


def test_a_training_step_in_json(http: httpx.Client) -> None:
    run = new_run(http)
    stub = http.post("/forward_backward", json=forward_backward(run, 1, [3, 4, 5])).json()
    output = result(http, stub["request_id"])
    [row] = output["loss_fn_outputs"]  # type: ignore[misc]
    assert row["logprobs"]["shape"] == [2]
    assert output["metrics"]["loss:sum"] == pytest.approx(-sum(row["logprobs"]["data"]), rel=1e-6)  # type: ignore[index]
    stub = http.post("/optim_step", json=step(run, 2, learning_rate=1e-3)).json()
    assert result(http, stub["request_id"])["metrics"]["grad_norm"] > 0  # type: ignore[index]


def test_a_resent_op_is_the_same_future(http: httpx.Client) -> None:
    run = new_run(http)
    stubs = [http.post("/optim_step", json=step(run, 1)).json() for _ in range(3)]
    assert len({stub["request_id"] for stub in stubs}) == 1
    assert result(http, stubs[0]["request_id"])["metrics"]["step"] == 1  # type: ignore[index]
    stub = http.post("/optim_step", json=step(run, 2)).json()
    assert result(http, stub["request_id"])["metrics"]["step"] == 2  # type: ignore[index]


def test_a_malformed_op_fails_in_its_turn_and_the_next_one_runs(http: httpx.Client) -> None:
    run = new_run(http)
    bad = http.post("/optim_step", json=step(run, 1, learning_rate="fast"))
    assert bad.status_code == 200
    failed = result(http, bad.json()["request_id"])
    assert failed["category"] == "user"
    assert "learning_rate" in str(failed["error"])
    good = http.post("/optim_step", json=step(run, 2)).json()
    assert "metrics" in result(http, good["request_id"])


def test_a_gap_is_closed_with_a_sentence_and_the_run_goes_on(http: httpx.Client) -> None:
    run = new_run(http)
    behind = http.post("/optim_step", json=step(run, 2)).json()
    assert "request 1" in str(result(http, behind["request_id"])["error"])
    after = http.post("/optim_step", json=step(run, 3)).json()
    assert "metrics" in result(http, after["request_id"])


def test_a_truncated_protobuf_is_unprocessable(http: httpx.Client) -> None:
    whole = pb.ForwardBackwardRequest(model_id="m" * 40, seq_id=1, loss_fn="cross_entropy")
    answer = http.post(
        "/forward_backward", content=whole.SerializeToString()[:30], headers=PROTOBUF
    )
    assert answer.status_code == 422
    assert "truncated" in answer.json()["detail"]
    assert int(answer.headers["content-length"]) > 0


def test_a_zstd_bomb_and_a_huge_body_are_refused_whole(http: httpx.Client) -> None:
    zeros = bytes(200 << 20)
    bomb = zstandard.compress(zeros)
    headers = PROTOBUF | {"Content-Encoding": "zstd"}
    for content, more in ((bomb, headers), (zeros, PROTOBUF)):
        answer = http.post("/forward_backward", content=content, headers=more)
        assert answer.status_code == 400
        assert "limit" in answer.json()["detail"]
    assert http.get("/healthz").json() == {"status": "ok"}


def test_keys_missing_wrong_and_revoked(service: Service) -> None:
    with httpx.Client(base_url=f"{service.url}/api/v1") as nobody:
        assert nobody.get("/training_runs").status_code == 401
    with service.http("tml-000000000000-" + "0" * 72) as wrong:
        assert wrong.get("/training_runs").status_code == 401
    tinsmith = [sys.executable, "-m", "tinsmith_server.cli", "keys"]

    def run(*words: str) -> str:
        done = subprocess.run(
            [*tinsmith, *words],
            env=service.environment,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    key = run("create", "short-lived", "--quiet")
    with service.http(key) as http:
        assert http.get("/training_runs").status_code == 200
        run("revoke", key.split("-")[1])
        assert http.get("/training_runs").status_code == 401


def test_the_futures_of_others_are_unknown(service: Service, http: httpx.Client) -> None:
    run = new_run(http)
    stub = http.post("/optim_step", json=step(run, 1)).json()
    with service.http(service.other_key) as other:
        for request_id in (stub["request_id"], "never-heard-of:1"):
            answer = other.post("/retrieve_future", json={"request_id": request_id})
            assert answer.status_code == 410
        assert other.post("/optim_step", json=step(run, 2)).status_code == 404
        assert other.post("/get_info", json={"model_id": run}).status_code == 404
    assert "metrics" in result(http, stub["request_id"])


def test_a_finished_session_takes_no_more(http: httpx.Client) -> None:
    run = new_run(http)
    session = run.split(":")[0]
    assert http.post(f"/sessions/{session}/finish", json={}).status_code == 200
    assert http.post("/session_heartbeat", json={"session_id": session}).status_code == 410
    answer = http.post("/optim_step", json=step(run, 1))
    assert answer.status_code == 400
    assert "finished" in answer.json()["detail"]
