"""Who is in work together, by hand."""

from tinsmith.protocol.jobs import Job, Kind
from tinsmith_worker.scheduler import SHARED_IN_WORK, Scheduler


def job(name: str, kind: Kind = Kind.FORWARD_BACKWARD, tokens: int = 10) -> Job:
    run, seq = name.split("/")
    return Job(request_id=name, run_id=run, seq_id=int(seq), kind=kind, body=b"", num_tokens=tokens)


def step(name: str) -> Job:
    return job(name, Kind.OPTIM_STEP, tokens=0)


def scheduler(*jobs: Job, budget: int = 100) -> Scheduler:
    made = Scheduler(budget)
    for one in jobs:
        made.add(one, "base")
    return made


def rounds(scheduler: Scheduler) -> list[list[str]]:
    """What is begun together, when each round is finished before the next."""
    found = []
    while begun := scheduler.next_alone() or scheduler.next_passes():
        found.append([one.request_id for one in begun])
        for one in begun:
            scheduler.finished(one)
    return found


def names(jobs: list[Job]) -> list[str]:
    return [one.request_id for one in jobs]


def test_the_gradients_of_one_run_and_of_others_are_in_work_together() -> None:
    made = scheduler(job("a/1"), job("a/2"), job("b/1"), job("c/1"))
    assert rounds(made) == [["a/1", "b/1", "c/1", "a/2"]]


def test_the_steps_of_many_runs_go_together() -> None:
    made = scheduler(step("a/1"), job("b/1"), step("c/1"), job("c/2"))
    assert rounds(made) == [["a/1", "c/1"], ["b/1", "c/2"]]


def test_a_step_waits_for_every_gradient_before_it() -> None:
    made = scheduler(job("a/1"), job("a/2"), step("a/3"), job("a/4"))
    first, second = made.next_passes()
    assert made.next_alone() == []
    made.finished(first)
    assert made.next_alone() == []
    made.finished(second)
    [taken] = made.next_alone()
    assert taken.request_id == "a/3"
    assert made.next_passes() == []
    made.finished(taken)
    assert names(made.next_passes()) == ["a/4"]


def test_the_budget_bounds_what_is_in_work_but_an_oversize_job_still_runs() -> None:
    made = scheduler(job("a/1", tokens=60), job("b/1", tokens=60), job("c/1", tokens=40))
    assert rounds(made) == [["a/1", "c/1"], ["b/1"]]
    assert rounds(scheduler(job("a/1", tokens=500))) == [["a/1"]]


def test_a_finished_job_makes_room_for_the_next() -> None:
    made = scheduler(job("a/1", tokens=100), job("b/1", tokens=100))
    [first] = made.next_passes()
    assert made.next_passes() == []
    made.finished(first)
    assert names(made.next_passes()) == ["b/1"]


def test_a_tenant_with_a_long_queue_does_not_hold_up_a_small_one() -> None:
    made = scheduler(*(job(f"a/{seq}", tokens=50) for seq in range(200)), job("b/1", tokens=50))
    assert names(made.next_passes()) == ["a/0", "b/1"]


def test_only_so_many_gradients_are_gathered_at_once() -> None:
    made = scheduler(*(job(f"a/{seq}", tokens=0) for seq in range(SHARED_IN_WORK + 5)))
    assert len(made.next_passes()) == SHARED_IN_WORK
    made.add(job("b/1"), "tiny", "another")
    assert names(made.next_passes()) == ["b/1"]


def test_an_organization_with_nothing_in_work_waits_for_no_one_elses_budget() -> None:
    made = scheduler(*(job(f"a/{seq}", tokens=60) for seq in range(3)))
    assert names(made.next_passes()) == ["a/0"]
    made.add(job("b/1", tokens=60), "tiny", "another")
    [small] = made.next_passes()
    assert small.request_id == "b/1"
    assert made.is_newcomer(small)
    made.add(job("b/2", tokens=60), "tiny", "another")
    assert made.next_passes() == []


def test_all_that_a_newcomer_brings_is_a_newcomers_until_the_next_round() -> None:
    made = scheduler(job("a/1", tokens=10))
    made.next_passes()
    for seq in (1, 2):
        made.add(job(f"b/{seq}", tokens=10), "tiny", "another")
    first, second = made.next_passes()
    assert made.is_newcomer(first)
    assert made.is_newcomer(second)
    made.add(job("b/3", tokens=10), "tiny", "another")
    [third] = made.next_passes()
    assert not made.is_newcomer(third)


def test_organizations_take_turns_however_many_runs_each_has() -> None:
    made = Scheduler(max_tokens_in_work=8 * 16)
    for run in range(8):
        made.add(job(f"large{run}/1", tokens=16), "tiny", "large")
    for seq in range(8):
        made.add(job(f"small/{seq}", tokens=16), "tiny", "small")
    begun = names(made.next_passes())
    assert sum(name.startswith("small") for name in begun) == 4
    assert len(begun) == 8


def test_turns_are_counted_in_tokens() -> None:
    made = Scheduler(max_tokens_in_work=160)
    for seq in range(20):
        made.add(job(f"long/{seq}", tokens=40), "tiny", "long")
        made.add(job(f"short/{seq}", tokens=10), "tiny", "short")
    begun = names(made.next_passes())
    assert begun.count("long/0") == 1
    tokens = {who: sum(size for name in begun if name.startswith(who)) for who, size in
              (("long", 40), ("short", 10))}  # fmt: skip
    assert tokens == {"long": 80, "short": 80}


def test_a_run_that_moved_away_leaves_nothing_but_what_is_in_work() -> None:
    made = scheduler(job("a/1"), step("a/2"))
    [begun] = made.next_passes()
    made.drop("a")
    assert made.busy_with("a")
    made.finished(begun)
    assert not made.busy_with("a")
    assert made.next_alone() == []


def test_what_waits_for_its_turn_only_is_told_from_what_waits_for_work() -> None:
    made = scheduler(job("a/1"), step("a/2"))
    assert made.can_begin
    [gradient] = made.next_passes()
    assert not made.can_begin
    made.finished(gradient)
    assert made.can_begin  # the step: the loop must not wait for a bell before it
    made.finished(*made.next_alone())
    assert not made.can_begin
