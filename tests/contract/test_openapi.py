"""The OpenAPI document is true: schemathesis sends what it allows, and what it does not, to every route.

Each answer has a status and a body that the document names, and none is a 5xx. Half of the ids that
it invents are replaced by real ones, or no request would get past the first look-up.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import schemathesis
import tinker
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.failures import FailureGroup
from tinsmith_server.openapi import OPENAI_ROUTES, ROUTES, route_of

from tests.contract.conftest import BASE_MODEL, Service
from tests.contract.test_clients import train

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "3"))
load_all_checks()
TRUE = [
    CHECKS.get_one(name)
    for name in (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
    )
]


@dataclass(frozen=True)
class Target:
    service: Service
    key: str
    real: dict[str, Any]
    """By the name of a field or parameter."""


@pytest.fixture(scope="module")
def target(service: Service) -> Iterator[Target]:
    """An organization of its own, with a run, a checkpoint and a sampler."""
    key = service.new_key("fuzzed")
    with tinker.ServiceClient(base_url=service.url, api_key=key) as client:
        run = client.create_lora_training_client(BASE_MODEL, rank=2).result(60)
        train(tinker, run, 1)
        path = run.save_state("fuzzed").result(60).path
        run.save_weights_for_sampler("fuzzed").result(60)
        session_id = run.model_id.split(":")[0]
        with service.http(key) as http:
            body = {"session_id": session_id, "sampling_session_seq_id": 900}
            made = http.post("/create_sampling_session", json=body | {"base_model": BASE_MODEL})
        sampler = made.json()["sampling_session_id"]
        real = {
            "session_id": session_id,
            "model_id": run.model_id,
            "run_id": run.model_id,
            "base_model": BASE_MODEL,
            "path": path,
            "tinker_path": path,
            "source_path": path,
            "model": path,
            "sampling_session_id": sampler,
            "sampler_id": sampler,
            "request_id": f"{run.model_id}:1",
            "kind": "weights",
            "name": "fuzzed",
        }
        yield Target(service, key, real)


@pytest.fixture(scope="module")
def document(target: Target) -> Any:
    return schemathesis.openapi.from_url(f"{target.service.url}/openapi.json")


ENDS_THE_KEY = ("delete", "/api/v1/auth/apikey/me")
OPERATIONS = [*(set(ROUTES) - {ENDS_THE_KEY}), *OPENAI_ROUTES]


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("method", "path"), sorted(OPERATIONS))
def test_every_answer_is_one_that_the_document_names(
    method: str, path: str, mode: GenerationMode, document: Any, target: Target
) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(document[path][method.upper()].as_strategy(mode))
    def send(case: Any) -> None:
        _make_real(case, target.real)
        headers = {"X-API-Key": target.key}
        answer = case.call(headers=headers, timeout=60, allow_redirects=False)
        case.validate_response(answer, checks=TRUE, headers=headers)

    with contextlib.suppress(Unsatisfiable):  # nothing there can be wrong
        send()


def _make_real(case: Any, real: dict[str, Any]) -> None:
    if len(json.dumps([case.body, case.query], default=str)) % 2:
        return
    for part in (case.path_parameters, case.query, case.body):
        if isinstance(part, dict):
            part.update({name: real[name] for name in part.keys() & real.keys()})


def test_every_route_has_its_entry_in_the_document(service: Service) -> None:
    paths = httpx.get(f"{service.url}/openapi.json").json()["paths"]
    for path, methods in paths.items():
        for method in methods:
            assert route_of(method, path) is not None, f"{method} {path}"


def test_the_document_describes_what_a_body_must_hold(service: Service) -> None:
    document = httpx.get(f"{service.url}/openapi.json").json()
    body = document["paths"]["/api/v1/create_model"]["post"]["requestBody"]["content"]
    name = body["application/json"]["schema"]["$ref"].rsplit("/", 1)[-1]
    assert set(document["components"]["schemas"][name]["required"]) == {
        "session_id",
        "model_seq_id",
        "base_model",
    }


def test_a_wrong_answer_would_be_seen(document: Any, target: Target) -> None:
    """The checks themselves: a status that no route documents, and a body without its fields."""
    case = document["/api/v1/checkpoints"]["GET"].Case()
    for status, content in ((200, None), (418, None), (200, b'{"checkpoints": 3}')):
        answer = case.call(headers={"X-API-Key": target.key})
        answer.status_code, answer.content = status, content or answer.content
        with pytest.raises(FailureGroup) if status == 418 or content else contextlib.nullcontext():
            case.validate_response(answer, checks=TRUE)
