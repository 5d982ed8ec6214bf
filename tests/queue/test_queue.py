"""Each race of the queue once, by name, with both ends on one real Valkey."""

import asyncio
from collections.abc import Iterator
from contextvars import copy_context
from dataclasses import replace

import pytest
from tinsmith.protocol import keys
from tinsmith.protocol.errors import BadRequest, NotFound
from tinsmith.protocol.jobs import Job, Kind, ModelCard, Result, failure
from tinsmith.protocol.origin import Origin
from tinsmith_server.asking import ORIGIN
from tinsmith_server.bus import Bus
from tinsmith_worker.queue import Fenced, Queue, Taken

BASE, RUN = "tiny", "s:train:0"
CARD = ModelCard(name=BASE, family="llama", vocab_size=8, max_context_length=8, max_lora_rank=8)


def job(seq: int, kind: Kind = Kind.OPTIM_STEP) -> Job:
    body = f"body {seq}".encode()
    return Job(request_id=f"{RUN}:{seq}", run_id=RUN, seq_id=seq, kind=kind, body=body)


class Ends:
    """A bus, and workers by name, on one Valkey."""

    def __init__(self, url: str) -> None:
        self.url, self.runner = url, asyncio.Runner()
        self.at: dict[Queue, tuple[int, int]] = {}
        self.bus = Bus(url)
        self.call(self.bus.redis.flushall())

    def call(self, coroutine: object) -> object:
        return self.runner.run(coroutine, context=copy_context())  # type: ignore[arg-type]

    def submit(self, *seqs: int) -> None:
        for seq in seqs:
            self.call(self.bus.submit("org", BASE, job(seq)))

    def worker(self, name: str) -> Queue:
        queue = Queue(self.url, name)
        queue.redis.set(keys.lease(name), b"1", px=60_000)
        queue.announce([CARD])
        return queue

    def take(self, queue: Queue, max_tokens: int = 1000) -> list[Taken]:
        answer = queue.take({RUN: self.at.get(queue, (0, -1))}, max_tokens)
        for taken in answer:
            self.at[queue] = (taken.epoch, taken.last)
        return answer

    def taken(self, queue: Queue) -> list[int]:
        return [job.seq_id for taken in self.take(queue) for job in taken.jobs]

    def result(self, seq: int) -> Result | None:
        return self.call(self.bus.wait(f"{RUN}:{seq}", 0.01))  # type: ignore[return-value]


@pytest.fixture
def ends(valkey_url: str) -> Iterator[Ends]:
    ends = Ends(valkey_url)
    yield ends
    ends.call(ends.bus.close())
    ends.runner.close()


def test_chunks_that_arrive_last_first_run_in_order(ends: Ends) -> None:
    worker = ends.worker("a")
    ends.submit(0, 2, 3)
    assert ends.taken(worker) == [0]
    ends.submit(1)
    assert ends.taken(worker) == [1, 2, 3]


def test_a_resent_op_runs_once_and_keeps_its_first_body(ends: Ends) -> None:
    worker = ends.worker("a")
    ends.submit(0, 0)
    assert ends.taken(worker) == [0]
    worker.done(job(0), 1, Result(data=b"first"))
    worker.done(job(0), 1, Result(data=b"second"))
    ends.submit(0)
    assert ends.taken(worker) == []
    assert ends.result(0) == Result(data=b"first")


def test_a_run_that_was_never_created_is_not_found(ends: Ends) -> None:
    with pytest.raises(NotFound, match="s:train:0"):
        ends.submit(1)


def test_a_zombie_can_neither_finish_nor_snapshot(ends: Ends) -> None:
    zombie = ends.worker("a")
    ends.submit(0, 1)
    assert ends.taken(zombie) == [0, 1]
    zombie.done(job(0), 1, Result(data=b"0"))
    zombie.redis.delete(keys.lease("a"))
    heir = ends.worker("b")
    assert heir.adopt_orphans([BASE]) == {RUN}
    assert ends.taken(heir) == [1]
    with pytest.raises(Fenced):
        zombie.done(job(1), 1, Result(data=b"zombie"))
    with pytest.raises(Fenced):
        zombie.snapshot_taken(RUN, 1, "zombie", 0)
    assert [job.seq_id for job in heir.replay_log(RUN)] == [0]
    heir.done(job(1), 2, Result(data=b"heir"))
    assert ends.result(1) == Result(data=b"heir")


def test_a_zombie_that_took_the_run_back_is_still_fenced_by_its_old_epoch(ends: Ends) -> None:
    first = ends.worker("a")
    ends.submit(0, 1)
    ends.taken(first)
    first.redis.delete(keys.lease("a"))
    second = ends.worker("b")
    second.adopt_orphans([BASE])
    second.redis.delete(keys.lease("b"))
    first.redis.set(keys.lease("a"), b"1")
    assert first.adopt_orphans([BASE]) == {RUN}
    with pytest.raises(Fenced):
        first.done(job(0), 1, Result(data=b"from before"))


def test_nobody_adopts_from_the_living(ends: Ends) -> None:
    ends.worker("a")
    ends.submit(0)
    assert ends.worker("b").adopt_orphans([BASE]) == set()


def test_a_run_placed_before_any_worker_lived_finds_a_home(ends: Ends) -> None:
    ends.submit(0, 1)
    worker = ends.worker("a")
    assert worker.adopt_orphans([BASE]) == {RUN}
    assert ends.taken(worker) == [0, 1]


def test_a_worker_that_withdraws_leaves_its_runs_to_the_next(ends: Ends) -> None:
    first = ends.worker("a")
    ends.submit(0)
    first.withdraw([BASE])
    second = ends.worker("b")
    assert second.adopt_orphans([BASE]) == {RUN}
    assert second.adopt_orphans([BASE]) == set()


def test_a_run_that_begins_while_its_worker_withdraws_finds_a_home_too(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ends.worker("a")
    leave = first.redis.zrem

    def late(*names: str) -> object:
        ends.submit(0)
        return leave(*names)

    monkeypatch.setattr(first.redis, "zrem", late)
    first.withdraw([BASE])
    assert ends.worker("b").adopt_orphans([BASE]) == {RUN}


def test_a_worker_is_asked_to_leave_rests_and_is_taken_back(ends: Ends) -> None:
    worker = ends.worker("a")
    assert not worker.asked_to_leave()
    worker.redis.set(keys.drain("a"), b"1", ex=60)
    assert worker.asked_to_leave()
    assert worker.rests()
    assert worker.redis.zrange(keys.DRAINED, 0, -1) == [b"a"]
    assert worker.redis.ttl(keys.drain("a")) > 60, "it rests for as long as nobody takes it back"
    worker.redis.delete(keys.drain("a"))
    assert not worker.rests()
    assert worker.redis.zrange(keys.DRAINED, 0, -1) == []


def test_a_tombstone_is_stepped_over_while_earlier_ops_still_run(ends: Ends) -> None:
    worker = ends.worker("a")
    ends.submit(0, 1)
    ends.call(ends.bus.submit_failed("org", RUN, 2, Kind.OPTIM_STEP, failure("refused")))
    ends.submit(3)
    assert ends.taken(worker) == [0, 1, 3]
    for seq in (0, 1):
        worker.done(job(seq), 1, Result(data=b""))
    assert worker.record(RUN).done == 2
    worker.done(job(3), 1, Result(data=b""))
    assert worker.record(RUN).done == 3
    assert ends.result(2) == failure("refused")


def test_a_tombstone_alone_does_not_hold_up_the_run(ends: Ends) -> None:
    worker = ends.worker("a")
    ends.submit(0)
    ends.taken(worker)
    worker.done(job(0), 1, Result(data=b""))
    ends.call(ends.bus.submit_failed("org", RUN, 1, Kind.OPTIM_STEP, failure("refused")))
    assert ends.taken(worker) == []
    assert worker.record(RUN).done == 1


def test_a_gap_is_seen_and_closed_with_all_that_waited_behind_it(ends: Ends) -> None:
    worker = ends.worker("a")
    ends.submit(0)
    ends.taken(worker)
    worker.done(job(0), 1, Result(data=b""))
    ends.submit(2, 4)
    assert [taken.status for taken in ends.take(worker)] == ["gap"]
    assert worker.close_gap(RUN, 1, failure("missing"), failure("behind")) == 4
    states = [ends.result(seq) for seq in (1, 2, 3, 4)]
    assert states == [failure(text) for text in ("missing", "behind", "missing", "behind")]
    ends.submit(5)
    assert ends.taken(worker) == [5]


def test_a_gap_that_filled_in_time_is_not_closed(ends: Ends) -> None:
    worker = ends.worker("a")
    ends.submit(0)
    ends.taken(worker)
    worker.done(job(0), 1, Result(data=b""))
    ends.submit(2, 1)
    assert worker.close_gap(RUN, 1, failure("missing"), failure("behind")) == 0
    assert ends.taken(worker) == [1, 2]


def test_a_snapshot_trims_what_it_covers_and_no_more(ends: Ends) -> None:
    worker = ends.worker("a")
    ends.submit(0, 1, 2)
    ends.taken(worker)
    for seq in (0, 1, 2):
        worker.done(job(seq), 1, Result(data=b""))
    assert worker.snapshot_taken(RUN, 1, "at-1", 1) == ""
    assert [(job.seq_id, job.body) for job in worker.replay_log(RUN)] == [(2, b"body 2")]
    assert worker.snapshot_taken(RUN, 1, "at-2", 2) == "at-1"
    assert worker.replay_log(RUN) == []


def test_failed_and_stateless_ops_leave_no_log(ends: Ends) -> None:
    worker = ends.worker("a")
    ends.submit(0, 1)
    ends.taken(worker)
    worker.done(job(0, Kind.FORWARD), 1, Result(data=b""))
    worker.done(job(1), 1, failure("bad"))
    assert worker.replay_log(RUN) == []


def sample(number: int) -> Job:
    request = f"s:sample:0:{number}"
    return Job(
        request_id=request, run_id="s:sample:0", seq_id=number, kind=Kind.SAMPLE, body=b"prompt"
    )


def test_a_sampling_job_of_a_dead_worker_is_rescued_and_answered_once(ends: Ends) -> None:
    dead = ends.worker("a")
    ends.call(ends.bus.submit_sample("org", BASE, sample(0), 0))
    ends.call(ends.bus.submit_sample("org", BASE, sample(0), 0))
    assert [ticket.body for ticket in dead.samples.take(BASE, 5)] == [b"prompt"]
    dead.redis.delete(keys.lease("a"))
    heir = ends.worker("b")
    assert heir.samples.rescue(BASE) == 1
    [ticket] = heir.samples.take(BASE, 5)
    heir.samples.done(ticket, Result(data=b"text"))
    dead.samples.done(ticket, Result(data=b"late"))
    assert ends.call(ends.bus.wait("s:sample:0:0", 0.01)) == Result(data=b"text")
    rows = ends.call(ends.bus.wait_completions("s:sample:0", 0, 0, 0.01))
    assert [(row.state, row.request_id) for row in rows] == [("finished", "s:sample:0:0")]


def test_a_cancelled_sample_fails_at_once_and_its_worker_is_told(ends: Ends) -> None:
    worker = ends.worker("a")
    ends.call(ends.bus.submit_sample("org", BASE, sample(0), 0))
    ends.call(ends.bus.submit_sample("org", BASE, sample(1), 0))
    [running] = worker.samples.take(BASE, 1)
    for number in (0, 1):
        ends.call(ends.bus.cancel(f"s:sample:0:{number}"))
    assert worker.notices().cancelled == {"s:sample:0:0", "s:sample:0:1"}
    assert worker.samples.take(BASE, 5) == []
    worker.samples.done(running, Result(data=b"late"))
    result = ends.call(ends.bus.wait("s:sample:0:0", 0.01))
    assert result.failed


def test_a_waiter_is_woken_by_a_completion_on_another_connection(ends: Ends) -> None:
    worker = ends.worker("a")

    async def wait_then_finish() -> Result | None:
        await ends.bus.start()
        await ends.bus.submit("org", BASE, job(0))
        waiting = asyncio.create_task(ends.bus.wait(job(0).request_id, 30))
        await asyncio.sleep(0)
        ends.take(worker)
        worker.done(job(0), 1, Result(data=b"woken"))
        return await waiting

    assert ends.call(wait_then_finish()) == Result(data=b"woken")


def test_a_take_whose_answer_was_lost_is_answered_again(ends: Ends) -> None:
    worker = ends.worker("a")
    ends.submit(0, 1, 2)
    before = dict(ends.at)
    assert ends.taken(worker) == [0, 1, 2]
    ends.at = dict(before)  # as if that answer had never come
    assert ends.taken(worker) == [0, 1, 2]
    assert ends.taken(worker) == []
    worker.done(job(0), 1, Result(data=b"0"))
    ends.at = dict(before)
    assert ends.taken(worker) == [1, 2]


def test_what_redis_lost_of_a_claimed_run_begins_a_new_epoch(ends: Ends) -> None:
    worker = ends.worker("a")
    ends.submit(0, 1)
    assert ends.taken(worker) == [0, 1]
    worker.done(job(0), 1, Result(data=b"0"))
    for key in (keys.future(f"{RUN}:1"), keys.payload(f"{RUN}:1"), keys.queue(RUN)):
        worker.redis.delete(key)
    with pytest.raises(Fenced):
        worker.done(job(1), 1, Result(data=b"1"))
    assert [taken.epoch for taken in ends.take(worker)] == [2]
    ends.submit(1)
    assert ends.taken(worker) == [1]


def test_samples_that_were_given_in_a_lost_answer_are_still_held(ends: Ends) -> None:
    worker = ends.worker("a")
    ends.call(ends.bus.submit_sample("org", BASE, sample(0), 0))
    assert len(worker.samples.take(BASE, 5)) == 1
    assert worker.samples.take(BASE, 5) == []
    [ticket] = worker.samples.retake(BASE)
    worker.samples.done(ticket, Result(data=b"text"))
    assert worker.samples.retake(BASE) == []


def test_where_a_job_came_from_goes_with_it_until_it_has_a_result(ends: Ends) -> None:
    worker, heir = ends.worker("a"), ends.worker("b")
    asked = Origin("req-1", "00-" + "a" * 32 + "-" + "b" * 16 + "-01")
    token = ORIGIN.set(lambda: asked)
    try:
        ends.submit(0)
        ends.call(ends.bus.submit_sample("org", BASE, sample(0), 0))
    finally:
        ORIGIN.reset(token)
    ends.submit(1)
    seconds, _ = worker.redis.time()
    [taken] = ends.take(worker)
    [first, second] = taken.jobs
    assert (first.origin, second.origin) == (asked, Origin())
    assert 0 <= seconds - first.submitted_us // 1_000_000 <= 10
    [held] = worker.samples.take(BASE, 5)
    assert held.origin == asked
    assert worker.samples.retake(BASE) == [held]
    worker.redis.delete(keys.lease("a"))
    assert heir.adopt_orphans([BASE]) == {RUN}
    [again] = ends.take(heir)
    assert again.jobs[0].origin == asked
    heir.done(again.jobs[0], again.epoch, Result(data=b"done"))
    worker.samples.done(held, Result(data=b"text"))
    for request in (f"{RUN}:0", "s:sample:0:0"):
        assert not worker.redis.hexists(keys.future(request), "origin")


def test_tenants_take_turns_at_sampling_by_tokens(ends: Ends) -> None:
    worker = ends.worker("a")

    def submit(tenant: str, number: int, tokens: int) -> None:
        one = replace(sample(number), run_id=tenant, request_id=f"{tenant}:{number}")
        one = replace(one, num_tokens=tokens)
        ends.call(ends.bus.submit_sample(tenant, BASE, one, 0))

    for number in range(200):
        submit("large", number, 1024)
    assert len(worker.samples.take(BASE, 4)) == 4
    for number in range(4):
        submit("small", number, 256)
    taken = [ticket.request_id for ticket in worker.samples.take(BASE, 6)]
    # One large one is as many tokens as four small ones; who comes anew is next.
    assert taken[:4] == [f"small:{number}" for number in range(4)]
    assert taken[4:] == ["large:4", "large:5"]


def test_a_cancelled_op_takes_along_what_builds_on_it_and_nothing_else(ends: Ends) -> None:
    worker = ends.worker("a")
    ends.submit(0, 1, 2, 3)
    assert ends.taken(worker) == [0, 1, 2, 3]
    worker.done(job(0), 1, Result(data=b"0"))
    ends.call(ends.bus.cancel(f"{RUN}:0"))  # it is done: nothing happens
    assert ends.result(1) is None
    ends.call(ends.bus.cancel(f"{RUN}:2"))
    assert [ends.result(seq).failed for seq in (2, 3)] == [True, True]  # type: ignore[union-attr]
    with pytest.raises(Fenced):  # what was in work before it begins again, on the state before
        worker.done(job(1), 1, Result(data=b"1"))
    assert ends.taken(worker) == [1]
    worker.done(job(1), 2, Result(data=b"1"))
    ends.submit(4)
    assert ends.taken(worker) == [4]


def test_an_ended_run_leaves_nothing_but_its_results(ends: Ends) -> None:
    worker = ends.worker("a")
    ends.submit(0, 1, 2)
    assert ends.taken(worker) == [0, 1, 2]
    worker.done(job(0), 1, Result(data=b"0"))
    worker.snapshot_taken(RUN, 1, "snapshots/0", 0)
    assert ends.call(ends.bus.cancel_line(RUN, failure("finished"))) == 2
    assert ends.call(ends.bus.end_run(RUN, failure("finished"))) == "snapshots/0"
    assert ends.result(0) == Result(data=b"0")
    assert ends.result(2) == failure("finished")
    with pytest.raises(Fenced):
        worker.done(job(1), 1, Result(data=b"1"))
    with pytest.raises(NotFound):
        ends.submit(3)
    assert worker.notices().ended == {RUN}
    assert ends.taken(worker) == []
    left = {key.decode().split(":")[0] for key in worker.redis.keys("*")}
    assert left <= {"fut", "res", "done", "ctl", "trace", "beats", "lease", "model", "models",
                    "workers", "inbox", "bell", "live"}  # fmt: skip


def lasting(worker: Queue) -> set[str]:
    """Keys that stay until somebody deletes them."""
    names = [key.decode() for key in worker.redis.keys("*")]
    return {name for name in names if worker.redis.ttl(name) == -1}


FIXED = {keys.MODELS, keys.model(BASE), keys.workers(BASE), keys.DONE, keys.CTL, keys.BEATS}


def test_what_comes_in_while_a_run_ends_is_failed_and_no_longer_counted(ends: Ends) -> None:
    """One op in work, one that waits, a tombstone behind a gap: no process cancels them first."""
    worker = ends.worker("a")
    ends.submit(0, 1)
    assert ends.taken(worker) == [0, 1]
    ends.submit(2)
    refused = failure("refused")
    ends.call(ends.bus.submit_failed("org", RUN, 4, Kind.OPTIM_STEP, refused))
    assert ends.call(ends.bus.end_run(RUN, failure("finished"))) is None
    assert [ends.result(seq) for seq in (0, 1, 2)] == [failure("finished")] * 3
    assert ends.result(4) == refused
    assert lasting(worker) <= FIXED
    assert not worker.redis.exists(keys.load(keys.SERVER_SCOPE))


def test_a_save_that_ends_after_its_run_leaves_no_sampler_weights_behind(ends: Ends) -> None:
    worker = ends.worker("a")
    ends.submit(0)
    worker.point_slot(RUN, 0, "weights/0")
    assert ends.call(ends.bus.newest_weights(RUN)) == "weights/0"
    ends.call(ends.bus.end_run(RUN, failure("finished")))
    worker.point_slot(RUN, 1, "weights/1")
    assert ends.call(ends.bus.newest_weights(RUN)) is None
    assert lasting(worker) <= FIXED


def test_a_bell_that_nobody_hears_falls_silent(ends: Ends) -> None:
    ends.submit(0, 1)  # of a base model that nobody holds
    ends.call(ends.bus.redis.delete(keys.inbox(keys.homeless(BASE))))
    assert ends.call(ends.bus.cancel_line(RUN, failure("cancelled"))) == 2
    worker = ends.worker("a")
    worker.ring(RUN)
    for name in (keys.homeless(BASE), "a"):
        assert 0 < worker.redis.ttl(keys.inbox(name)) <= 3600


def test_a_seq_out_of_all_reach_is_refused_for_good(ends: Ends) -> None:
    ends.submit(0)
    ends.submit(20_000 - 1)
    with pytest.raises(BadRequest, match="20000"):
        ends.submit(20_000)
