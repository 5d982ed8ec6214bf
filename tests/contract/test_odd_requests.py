"""Every route, asked nonsense: a mistake of the caller is never a 5xx, nor anything that is retried."""

import itertools
import re
from typing import Any

import httpx
import pytest
from tinsmith_server import app

from tests.contract.conftest import Service
from tests.contract.test_plain_http import new_run

_IDS = ("nothing", "a:b:c", "..%2F..", "%00", "%F0%9F%A6%A9", "x" * 3000)
_BODIES: tuple[Any, ...] = (
    b"",
    b"null",
    b"[]",
    b"{",
    b"\xff\xfe",
    b'{"path": "\\u0000", "tinker_path": "\\u0000", "session_id": "\\u0000"}',
    b'{"session_id": "' + b"y" * 5000 + b'", "model_id": "m", "seq_id": 99999999999999999999}',
    b'{"model_id": "nobody:train:0", "seq_id": 1, "sampling_session_id": "s", "request_id": "r"}',
    b'{"display_name": "\\u0000", "tags": ["\\u0000"], "user_metadata": {"\\u0000": "\\u0000"}}',
    b'{"session_id": "s", "model_seq_id": -1, "base_model": "b", "path": "tinker://a:train:0/weights/b"}',
    b'{"source_path": "tinker://a:train:0/weights/b", "destination_project_id": "\\u0000"}',
)
_QUERIES = (
    "limit=-1",
    "limit=9999999999999999999999&offset=1e9",
    "expires=99999999999999999999&signature=%C3%A9",
    "starting_on=2026-02-30T00:00:00Z&ending_before=0000",
    "project_id=%00&access_scope=accessible&day=0001-01-01&base_model=%00",
)
_RETRIED = (408, 409, 429)


def routes() -> list[tuple[str, str]]:
    found = [route for room in app._ROOMS for route in room.router.routes]
    return sorted((method, f"/api/v1{route.path}") for route in found for method in route.methods)


@pytest.mark.parametrize(("method", "path"), routes())
def test_nonsense_is_refused_for_good(service: Service, method: str, path: str) -> None:
    if (method, path) == ("DELETE", "/api/v1/auth/apikey/me"):
        pytest.skip("there is nothing to get wrong in it, and it ends the key")
    with service.http() as http:
        for name in _IDS if "{" in path else _IDS[:1]:
            url = service.url + re.sub(r"\{[a-z_]+\}", name, path)
            for body in _BODIES if method in ("POST", "PUT") else (None,):
                _ask(http, method, url, body)
            for query in _QUERIES:
                _ask(http, method, f"{url}?{query}", b"{}" if method == "POST" else None)


def _ask(http: httpx.Client, method: str, url: str, body: bytes | None) -> None:
    answer = http.request(method, url, content=body)
    assert answer.status_code < 500, (method, url, body, answer.text)
    assert answer.status_code not in _RETRIED, (method, url, body, answer.text)
    if answer.status_code >= 400:
        assert answer.json()["detail"]
        assert int(answer.headers["content-length"]) == len(answer.content)


def test_an_op_with_nonsense_inside_fails_in_its_turn(service: Service) -> None:
    with service.http() as http:
        run = new_run(http)
        paths = (
            "/optim_step",
            "/save_weights",
            "/save_weights_for_sampler",
            "/save_weights_external",
        )
        wrong = ({"path": 5}, {"path": "\x00"}, {"path": "a", "ttl_seconds": -1}, {"path": "é"})
        for seq_id, (path, more) in enumerate(itertools.product(paths, wrong), 1):
            stub = http.post(path, json={"model_id": run, "seq_id": seq_id} | more)
            assert stub.status_code == 200, stub.text
