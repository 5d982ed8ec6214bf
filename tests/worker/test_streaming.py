"""Tokens told as they are drawn: one message a step, the result's own tokens, and no harm when it fails."""
# ruff: noqa: F811 - fixtures are imported by name and asked for by name

import msgspec
import numpy as np
import pytest
from redis.exceptions import ConnectionError as RedisAway
from tinsmith.protocol import keys
from tinsmith.protocol import wire_pb2 as pb
from tinsmith.protocol.bodies import SamplingParams
from tinsmith.protocol.jobs import DrawnToken, Job, Kind, Result, SampleJob, encode
from tinsmith_worker.queue import Queue

from tests.worker.test_worker_loop import House, house, models, url  # noqa: F401 - fixtures

NUM_TOKENS = 12


def streamed(house: House, name: str, samples: int = 1) -> str:
    params = SamplingParams(max_tokens=NUM_TOKENS, stop=[])
    body = SampleJob(
        base_model="tiny",
        adapter_prefix=None,
        prompt=[5, 6, 7],
        num_samples=samples,
        params=params,
        seed=9,
        topk_sample_logprobs=2,
        tokens_to="api",
    )
    request = f"{name}:0"
    job = Job(request_id=request, run_id=name, seq_id=0, kind=Kind.SAMPLE, body=encode(body))
    house.call(house.bus.submit_sample("org", "tiny", job, 0))
    return request


def messages(house: House) -> list[list[DrawnToken]]:
    rows = house.call(house.bus.redis.xrange(keys.tokens("api")))
    return [
        msgspec.msgpack.decode(fields[b"drawn"], type=list[DrawnToken])
        for _, fields in rows  # type: ignore[attr-defined]
    ]


def response(result: Result | None) -> pb.SampleResponse:
    assert result is not None
    assert not result.failed, result.data
    return pb.SampleResponse.FromString(result.data)


def test_each_step_is_one_message_with_the_tokens_of_the_result(house: House) -> None:
    worker = house.worker()
    requests = [streamed(house, "one", samples=2), streamed(house, "two")]
    house.until(worker, *requests)
    told = messages(house)
    assert len(told) == NUM_TOKENS  # both prompts fit into the first pass
    for request in requests:
        sequences = response(house.result(request)).sequences
        for sample, sequence in enumerate(sequences):
            mine = [one for step in told for one in step if one.request_id == request]
            mine = [one for one in mine if one.sample == sample]
            assert [one.position for one in mine] == list(range(NUM_TOKENS))
            assert [one.token for one in mine] == np.frombuffer(sequence.tokens, "<i4").tolist()
            logprobs = np.frombuffer(sequence.logprobs, "<f4")
            assert np.array_equal(np.float32([one.logprob for one in mine]), logprobs)
            ids = [token for one in mine for token, _ in one.top or []]
            assert ids == np.frombuffer(sequence.topk_sampled_logprobs.token_ids, "<i4").tolist()


def test_samples_that_nobody_streams_are_not_told(house: House) -> None:
    worker = house.worker()
    house.until(worker, house.sample("quiet", tokens=4))
    assert messages(house) == []


def test_a_queue_that_cannot_be_told_costs_no_result(
    house: House,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = house.worker()
    request = streamed(house, "deaf")

    class Away:
        def xadd(self, *_: object, **__: object) -> None: ...
        def expire(self, *_: object) -> None: ...
        def execute(self) -> None:
            raise RedisAway

    for desk in worker._desks.values():
        queue: Queue = desk.queue
        monkeypatch.setattr(queue.redis, "pipeline", lambda transaction: Away())
    house.until(worker, request)
    monkeypatch.undo()
    [sequence] = response(house.result(request)).sequences
    assert len(sequence.tokens) == 4 * NUM_TOKENS
    assert messages(house) == []
