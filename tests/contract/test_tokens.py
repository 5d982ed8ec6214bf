"""A key is exchanged for a token, the token says who one is, and ends with its key."""

import base64
import json
import os
import subprocess
import sys
import time

import httpx
import pytest
import tinker
from tinsmith_server.accounts import tokens
from tinsmith_server.accounts.caller import Caller

from tests.contract.conftest import Service
from tests.contract.recording_proxy import recording_proxy


def exchanged(http: httpx.Client) -> str:
    return str(http.post("/auth/token", json={}).json()["jwt"])


def claims(token: str) -> dict[str, object]:
    payload = token.split(".")[1]
    return dict(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))))


def test_whoami_and_every_later_request_goes_by_token(service: Service) -> None:
    with recording_proxy(service.url) as (url, arrived):
        rest = tinker.RestClient(base_url=url, api_key=service.api_key)
        me = rest.whoami().result(30)
        rest.list_training_runs().result(30)
    assert me.user_urn == f"tml:api_key:{service.api_key.split('-')[1]}"
    assert me.org_urn.startswith("tml:organization:org-")
    assert me.email is None
    sent = {path.split("?")[0]: request.headers["x-api-key"] for path, request in arrived}
    assert sent["/auth/token"] == service.api_key
    assert sent["/training_runs"].startswith("eyJ")


def test_a_token_is_a_credential_of_its_own_and_cannot_renew_itself(service: Service) -> None:
    with service.http() as http:
        token = exchanged(http)
    rest = tinker.RestClient(base_url=service.url, api_key=token)
    rest.list_training_runs().result(30)
    with service.http(token) as http:
        assert claims(exchanged(http))["exp"] == claims(token)["exp"]


def test_forged_and_expired_tokens_are_told_to_exchange_again(service: Service) -> None:
    with service.http() as http:
        header, payload, signature = exchanged(http).split(".")
    pepper = (service.data_dir / "key_pepper").read_bytes()
    secret = tokens.token_secret(pepper)
    caller = Caller(service.api_key.split("-")[1], "org", until=time.time() - 1)
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    bad = [
        tokens.issue(secret, caller),
        tokens.issue(b"another secret", Caller(caller.key_id, "org")),
        f"{header}.{payload}.{signature[:-2]}",
        f"{unsigned}.{payload}.",
        f"{header}.{payload[:-4]}.{signature}",
        "eyJ",
        "eyJ.é.x",
    ]
    for token in bad:
        with service.http() as http:
            answer = http.get("/training_runs", headers={"X-API-Key": token.encode()})
        assert answer.status_code == 401
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]


def test_my_key_is_looked_up_and_ended_with_its_tokens(service: Service) -> None:
    key = service.new_key("leavers")
    with service.http(key) as http:
        info = http.get("/auth/apikey/me").json()
        assert (info["key_id"], info["name"]) == (int(key.split("-")[1], 16), "test")
        assert info["details"]["org_details"]["name"] == "leavers"
        token = exchanged(http)
        with service.http(token) as by_token:
            assert by_token.get("/training_runs").status_code == 200
            assert http.delete("/auth/apikey/me").is_success
            assert by_token.get("/training_runs").status_code == 401
        assert http.get("/training_runs").status_code == 401
        assert http.post("/auth/token", json={}).status_code == 401


def test_the_command_line_says_who_one_is(service: Service) -> None:
    environment = os.environ | {
        "TINKER_BASE_URL": service.url,
        "TINKER_API_KEY": service.api_key,
        "HOME": str(service.data_dir),
    }
    command = [sys.executable, "-m", "tinker.cli", "auth", "whoami"]
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert service.api_key.split("-")[1] in said.stdout


@pytest.mark.parametrize("body", [b"{}", b"not json", b'{"events":[' + b"0," * 6_000_000 + b"0]}"])
def test_telemetry_is_always_accepted(service: Service, body: bytes) -> None:
    with httpx.Client(base_url=f"{service.url}/api/v1") as nobody:
        answer = nobody.post("/telemetry", content=body)
    assert answer.status_code == 200
    assert answer.json() == {"status": "accepted"}
