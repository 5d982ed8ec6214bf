"""What SUBMIT refuses, when it takes in again, and what it never refuses."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from tinsmith.protocol import keys
from tinsmith.protocol.errors import TooMany
from tinsmith.protocol.jobs import Kind, Result, failure
from tinsmith_server.accounts.caller import Caller
from tinsmith_server.limits import (
    AccountLimits,
    Bounds,
    Limits,
    QueueCaps,
    Refusal,
    Scoped,
    queue_limits,
)
from tinsmith_server.status import status

from tests.queue.test_queue import BASE, RUN, Ends, job, sample

SCOPE = "org:one"


@pytest.fixture
def ends(valkey_url: str) -> Iterator[Ends]:
    ends = Ends(valkey_url)
    yield ends
    ends.call(ends.bus.close())
    ends.runner.close()


def within(**limits: float) -> Bounds:
    return Bounds((Scoped(SCOPE, Limits(**limits)),))  # type: ignore[arg-type]


def submit(ends: Ends, bounds: Bounds, *seqs: int, run: str = RUN, **more: object) -> None:
    for seq in seqs:
        one = replace(job(seq), request_id=f"{run}:{seq}", run_id=run, **more)  # type: ignore[arg-type]
        ends.call(ends.bus.submit("org", BASE, one, bounds))


def counted(ends: Ends, scope: str = SCOPE) -> dict[str, int]:
    rows = ends.call(ends.bus.redis.hgetall(keys.load(scope)))
    return {name.decode(): int(value) for name, value in rows.items()}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("limits", "what"),
    [
        ({"queued_requests": 2}, "2 requests waiting"),
        ({"queued_bytes": 12}, "12 bytes of requests waiting"),
        ({"queued_tokens": 15}, "15 tokens of requests waiting"),
    ],
)
def test_a_full_scope_refuses_until_something_is_done(
    ends: Ends, limits: dict[str, float], what: str
) -> None:
    worker, bounds = ends.worker("a"), within(**limits)
    submit(ends, bounds, 0, 1, num_tokens=7)
    with pytest.raises(TooMany, match=what) as refused:
        submit(ends, bounds, 2, num_tokens=7)
    assert refused.value.headers["Retry-After"] == "1"
    assert ends.call(ends.bus.future(f"{RUN}:2")) is None  # it left no trace but the note
    told = ends.call(ends.bus.refusals(f"{RUN}:1"))
    assert isinstance(told, Refusal)
    assert (told.queue_state, told.sentence) == ("paused_capacity", refused.value.message)
    submit(ends, bounds, 1)  # a resent one is known, and no more work
    assert ends.taken(worker) == [0, 1]
    worker.done(job(0), 1, Result(data=b""))
    submit(ends, bounds, 2, num_tokens=7)
    assert counted(ends) == {"requests": 2, "bytes": 12, "tokens": 14}


def test_one_request_may_be_larger_than_the_scope_while_nothing_waits(ends: Ends) -> None:
    submit(ends, within(queued_bytes=1, queued_tokens=1), 0, num_tokens=100)


def test_what_others_wait_behind_is_never_refused(ends: Ends) -> None:
    """Chunks of one call come as 2, 3, 1: without the 1 the cap would stay full for ever."""
    worker, bounds = ends.worker("a"), within(queued_requests=2, requests_per_second=0.001)
    ends.submit(0)
    ends.taken(worker)
    worker.done(job(0), 1, Result(data=b""))
    submit(ends, within(), 2, 3)
    submit(ends, bounds, 1)
    assert ends.taken(worker) == [1, 2, 3]


def test_nothing_is_counted_any_more_once_everything_has_its_result(ends: Ends) -> None:
    worker, bounds = ends.worker("a"), within()
    submit(ends, bounds, 0, 1, 3, 4)
    ends.call(ends.bus.submit_sample("org", BASE, sample(0), 0, bounds))
    ends.call(ends.bus.submit_sample("org", BASE, sample(1), 0, bounds))
    assert counted(ends)["samples"] == 2
    assert ends.taken(worker) == [0, 1]
    for seq in (0, 1):
        worker.done(job(seq), 1, Result(data=b""))
        worker.done(job(seq), 1, Result(data=b""))
    assert worker.close_gap(RUN, 1, failure("missing"), failure("behind")) == 3
    [ticket, _] = worker.samples.take(BASE, 2)
    worker.samples.done(ticket, Result(data=b""))
    worker.samples.done(ticket, Result(data=b""))
    ends.call(ends.bus.cancel("s:sample:0:1"))
    assert counted(ends) == {}


def test_rates_refuse_for_as_long_as_it_takes(ends: Ends) -> None:
    """Two a second, none saved up: after a burst of two, a wait of half a second."""
    bounds = within(requests_per_second=2)
    submit(ends, bounds, 0, 1)
    with pytest.raises(TooMany, match="2 requests a second"):
        submit(ends, bounds, 2, 3)
    told = ends.call(ends.bus.refusals(f"{RUN}:1"))
    assert isinstance(told, Refusal)
    assert told.queue_state == "paused_rate_limit"
    assert told.wait_seconds <= 0.5
    ends.call(ends.bus.redis.hincrbyfloat(f"rate:{SCOPE}", "per_second", 2))  # a second later
    submit(ends, bounds, 2)


def test_tokens_a_minute_may_be_overdrawn_once_and_are_paid_back(ends: Ends) -> None:
    bounds = within(tokens_per_minute=60)
    submit(ends, bounds, 0, num_tokens=90)
    with pytest.raises(TooMany, match="60 tokens a minute") as refused:
        submit(ends, bounds, 1, num_tokens=1)
    assert 28 <= int(refused.value.headers["Retry-After"]) <= 31  # 30 tokens at one a second


def test_live_runs_are_counted_until_they_end(ends: Ends) -> None:
    bounds = within(live_runs=1)
    submit(ends, bounds, 0, 1)
    with pytest.raises(TooMany, match="1 training runs at once"):
        submit(ends, bounds, 0, run="s:train:1")
    ends.call(ends.bus.cancel_line(RUN, failure("finished")))
    ends.call(ends.bus.end_run(RUN, failure("finished")))
    submit(ends, bounds, 0, run="s:train:1")


def test_a_limit_of_nothing_lets_nothing_in(ends: Ends) -> None:
    with pytest.raises(TooMany):
        submit(ends, within(queued_requests=0), 0)
    with pytest.raises(TooMany):
        submit(ends, within(requests_per_second=0), 0)
    with pytest.raises(TooMany):
        submit(ends, within(live_runs=0), 0)


def test_the_narrower_of_caps_and_account_holds_and_the_narrowest_scope_comes_first() -> None:
    caps = QueueCaps(organization=Limits(queued_requests=10), project=Limits(queued_bytes=5))
    account = AccountLimits(organization=Limits(queued_requests=3, live_runs=2))
    bounds = Bounds.of(Caller("k", "o"), "p", "r", caps, account)
    assert bounds.scopes == "run:r key:k project:o/p org:o server"
    organization = bounds.scoped[3].limits
    assert (organization.queued_requests, organization.live_runs) == (3, 2)
    assert bounds.scoped[2].limits == Limits(queued_bytes=5)


def test_caps_are_read_from_a_setting() -> None:
    assert queue_limits("5, ,7") == Limits(queued_requests=5, queued_tokens=7)
    with pytest.raises(ValueError, match="requests,bytes,tokens"):
        queue_limits("5")


def test_the_state_of_the_service_in_one_look(ends: Ends) -> None:
    server = Bounds()
    ends.call(ends.bus.redis.sadd(keys.MODELS, BASE))
    submit(ends, server, 0, 1, num_tokens=7)
    assert ends.call(status(ends.bus)).runs[0].worker is None  # type: ignore[attr-defined]
    worker = ends.worker("a")
    assert worker.adopt_orphans([BASE]) == {RUN}
    ends.call(ends.bus.submit_sample("org", BASE, sample(0), 0, server))
    worker.samples.take(BASE, 1)
    ends.taken(worker)
    worker.done(job(0, Kind.CREATE_MODEL), 2, Result(data=b""), logged=True)
    found = ends.call(status(ends.bus))
    [one], [run] = found.workers, found.runs  # type: ignore[attr-defined]
    assert (one.name, one.num_runs, one.num_samples, one.base_models) == ("a", 1, 1, [BASE])
    assert 50 < one.lease_seconds <= 60
    assert (run.run_id, run.worker, run.epoch, run.done) == (RUN, "a", 2, 0)
    assert (run.num_waiting, run.log_length, run.snapshot_seq) == (1, 1, -1)
    assert run.snapshot_age_seconds is None
    assert 0 <= run.oldest_seconds < 60
    assert 0 <= run.adopted_seconds_ago < 60
    assert (found.queued_requests, found.queued_samples, found.queued_tokens) == (2, 1, 7)  # type: ignore[attr-defined]
    worker.snapshot_taken(RUN, 2, "snapshots/0", 0)
    worker.redis.delete(keys.lease("a"))
    found = ends.call(status(ends.bus, "org"))
    assert found.workers[0].lease_seconds is None  # type: ignore[attr-defined]
    assert found.runs[0].snapshot_age_seconds < 60  # type: ignore[attr-defined]
    assert ends.call(status(ends.bus, "another")).runs == []  # type: ignore[attr-defined]
