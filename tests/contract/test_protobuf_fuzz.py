"""Broken protobuf, sent at the training calls: refused or failed by name, never a 5xx, never a wait without end.

Each body is a good one with bytes flipped, cut out, doubled or put in; the seed is fixed.
"""

import json
import os
import random
from collections import Counter
from collections.abc import Callable

import httpx
import psutil
import pytest
from tinsmith.protocol import wire_pb2 as pb
from tinsmith.protocol.tensors import parse_forward_backward
from tinsmith_server.runs.json_forward import JsonForwardBackward, to_message
from tinsmith_server.wire import decode

from tests.contract.conftest import Service
from tests.contract.test_plain_http import (
    PROTOBUF,
    forward_backward,
    new_run,
    result,
    step,
)

BODIES = int(os.environ.get("FUZZ_EXAMPLES", "6")) * 25
GROWTH_BYTES = 96 << 20


def good(run: str, seq_id: int) -> bytes:
    """The same datum as in JSON."""
    text = json.dumps(forward_backward(run, seq_id, [3, 4, 5, 6])).encode()
    return to_message(decode(text, JsonForwardBackward)).SerializeToString()


def flipped(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]


def cut(data: bytes, chance: random.Random) -> bytes:
    first, last = sorted(chance.choices(range(len(data) + 1), k=2))
    return data[:first] + data[last:]


def doubled(data: bytes, chance: random.Random) -> bytes:
    first, last = sorted(chance.choices(range(len(data) + 1), k=2))
    return data[:last] + data[first:last] * chance.randrange(1, 200) + data[last:]


def stuffed(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    number = b"\xff" * 9 + bytes([chance.randrange(128)])  # a varint of ten bytes
    return data[:at] + (number if chance.random() < 0.5 else chance.randbytes(8)) + data[at:]


MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [flipped, cut, doubled, stuffed]


def answered(http: httpx.Client, body: bytes) -> httpx.Response:
    return http.post("/forward_backward", content=body, headers=PROTOBUF)


def test_broken_bodies_are_refused_and_cost_nobody_anything(service: Service) -> None:
    chance = random.Random(7)
    statuses: Counter[int] = Counter()
    with service.http() as http:
        run = new_run(http)
        api = _serving(service)
        for _ in range(20):
            answered(http, flipped(good(run, 1 << 30), chance))  # what is made once, is made now
        before = api.memory_info().rss
        pending = []
        for seq_id in range(1, BODIES + 1):
            body = good(run, seq_id)
            for _ in range(chance.randrange(1, 4)):
                body = chance.choice(MUTATIONS)(body, chance) or b"\x00"
            answer = answered(http, body)
            statuses[answer.status_code] += 1
            assert answer.status_code in (200, 400, 404, 422), answer.text
            if answer.status_code == 200:
                pending.append(answer.json()["request_id"])
            else:
                assert answer.json()["detail"]
        for request_id in pending:
            assert result(http, request_id)  # or a gap would hold it: every one comes to an end
        assert api.memory_info().rss - before < GROWTH_BYTES
        assert statuses[200]
        assert statuses[404] + statuses[422] + statuses[400]
        other = new_run(http)
        answer = answered(http, good(other, 1))
        assert "metrics" in result(http, answer.json()["request_id"])
        stub = http.post("/optim_step", json=step(other, 2)).json()
        assert "metrics" in result(http, stub["request_id"])


def test_the_good_body_is_good() -> None:
    message = parse_forward_backward(good("m" * 8 + ":train:0", 3))
    assert isinstance(message, pb.ForwardBackwardRequest)
    assert message.seq_id == 3


def _serving(service: Service) -> psutil.Process:
    """The API process, found by its port."""
    port = int(service.url.rsplit(":", 1)[1])
    for one in psutil.net_connections("tcp"):
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port and one.pid:
            return psutil.Process(one.pid)
    pytest.fail("nobody listens")
