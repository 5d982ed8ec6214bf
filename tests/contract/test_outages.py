"""A part that is down for a while: a poll is told what it waits for, and then gets the right answer."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.chaos.cluster import APIS, Cluster, running_cluster
from tests.contract.conftest import BASE_MODEL


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("outages")
    settings = {"TINSMITH_POLL_SECONDS": "1", "TINSMITH_GAP_SECONDS": "600"}
    with running_cluster(folder, str(folder / "store"), settings) as made:
        yield made


class Caller:
    """Speaks to one API process."""

    def __init__(self, cluster: Cluster, api: str = APIS[0]) -> None:
        url = f"http://127.0.0.1:{cluster.ports[api]}/api/v1"
        headers = {"X-API-Key": cluster.api_key}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False)

    def must(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Tries again as the SDK does while a part is down."""
        while True:
            told = self.http.post(path, json=body)
            if told.status_code == 200:
                return dict(told.json())
            assert told.status_code in (408, 503), told.text

    def poll(self, request_id: str) -> httpx.Response:
        return self.http.post("/retrieve_future", json={"request_id": request_id})

    def new_run(self) -> str:
        session = self.must("/create_session", {})["session_id"]
        body = {"session_id": session, "model_seq_id": 0, "base_model": BASE_MODEL}
        stub = self.must("/create_model", body | {"lora_config": {"rank": 2}})
        self.must("/retrieve_future", {"request_id": stub["request_id"]})
        return str(stub["model_id"])

    def step(self, run: str, seq_id: int) -> str:
        body = {"model_id": run, "seq_id": seq_id, "adam_params": {"learning_rate": 1e-4}}
        return str(self.must("/optim_step", body)["request_id"])


def told_to_wait(answer: httpx.Response) -> str:
    assert answer.status_code == 408
    body = answer.json()
    assert (body["type"], body["queue_state"]) == ("try_again", "paused_capacity")
    return str(body["queue_state_reason"])


def test_a_poll_outlives_the_queue(cluster: Cluster) -> None:
    caller = Caller(cluster)
    run = caller.new_run()
    second = caller.step(run, 2)  # it waits for the first
    assert caller.poll(second).json()["queue_state"] == "active"
    cluster.kill("valkey")
    assert "queue" in told_to_wait(caller.poll(second))
    cluster.start("valkey")
    caller.step(run, 1)
    assert "metrics" in caller.must("/retrieve_future", {"request_id": second})


def test_a_poll_outlives_the_database(cluster: Cluster) -> None:
    caller = Caller(cluster)
    run = caller.new_run()
    second = caller.step(run, 2)
    stranger = Caller(cluster, APIS[1])  # whose process has to ask the database who this is
    cluster.kill(APIS[1])
    cluster.start(APIS[1])
    cluster.wait_until_ready()
    with cluster.postgres.stopped():
        assert "database" in told_to_wait(stranger.poll(second))
        assert caller.poll(second).status_code == 408  # this one knows who it is
    caller.step(run, 1)
    assert "metrics" in stranger.must("/retrieve_future", {"request_id": second})


def test_a_poll_without_a_worker_says_so(cluster: Cluster) -> None:
    caller = Caller(cluster)
    run = caller.new_run()
    for worker in ("worker-0", "worker-1"):
        cluster.kill(worker)
    first = caller.step(run, 1)
    while "No worker" not in str(caller.poll(first).json().get("queue_state_reason")):
        pass  # until both leases have run out
    cluster.start("worker-0")
    assert "metrics" in caller.must("/retrieve_future", {"request_id": first})
