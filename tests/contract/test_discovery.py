"""What the service says of itself: its extensions, and why a request waits."""

import httpx
from tinsmith_server.extensions import EXTENSIONS

from tests.contract.conftest import BASE_MODEL, Service
from tests.contract.test_plain_http import new_run, result, step


def test_extensions_name_only_endpoints_that_exist(service: Service) -> None:
    with service.http() as http:
        told = http.get("/extensions").json()
        schema = httpx.get(f"{service.url}/openapi.json").json()["paths"]
    assert told["server"] == "tinsmith"
    assert [one["name"] for one in told["extensions"]] == [one.name for one in EXTENSIONS]
    for extension in EXTENSIONS:
        for endpoint in extension.endpoints:
            if endpoint != "every endpoint":
                method, path = endpoint.split(" ")
                assert method.lower() in schema[path]


def test_a_request_without_a_worker_says_what_it_waits_for(service: Service) -> None:
    with service.http() as http:
        run = new_run(http)
        service.processes["work"].kill()
        service.processes["work"].wait()
        try:
            stub = http.post("/optim_step", json=step(run, 1)).json()
            state = {}
            while state.get("queue_state") != "paused_capacity":  # its lease runs out first
                answer = http.post("/retrieve_future", json={"request_id": stub["request_id"]})
                assert answer.status_code == 408
                state = answer.json()
            assert (state["type"], state["request_id"]) == ("try_again", stub["request_id"])
            assert BASE_MODEL in state["queue_state_reason"]
        finally:
            service.start("work")
        assert "metrics" in result(http, stub["request_id"])
