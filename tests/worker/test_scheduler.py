"""Who shares a pass, by hand."""

from tinsmith.protocol.jobs import Job, Kind
from tinsmith_worker.scheduler import Scheduler


def job(name: str, kind: Kind = Kind.FORWARD_BACKWARD, tokens: int = 10) -> Job:
    run, seq = name.split("/")
    return Job(request_id=name, run_id=run, seq_id=int(seq), kind=kind, body=b"", num_tokens=tokens)


def scheduler(*jobs: Job, budget: int = 100, bases: dict[str, str] | None = None) -> Scheduler:
    made = Scheduler(budget)
    for one in jobs:
        made.add(one, (bases or {}).get(one.run_id, "base"))
    return made


def batches(scheduler: Scheduler) -> list[list[str]]:
    found = []
    while batch := scheduler.next_batch():
        found.append([job.request_id for job in batch])
    return found


def test_runs_share_a_pass_and_one_run_never_shares_with_itself() -> None:
    made = scheduler(job("a/1"), job("a/2"), job("b/1"), job("c/1"))
    assert batches(made) == [["a/1", "b/1", "c/1"], ["a/2"]]


def test_an_op_without_a_pass_goes_first_and_alone() -> None:
    step = job("b/1", Kind.OPTIM_STEP)
    made = scheduler(job("a/1"), step, job("b/2"))
    assert batches(made) == [["b/1"], ["a/1", "b/2"]]


def test_a_step_stays_behind_the_gradient_it_applies() -> None:
    made = scheduler(job("a/1"), job("a/2", Kind.OPTIM_STEP), job("a/3"))
    assert batches(made) == [["a/1"], ["a/2"], ["a/3"]]


def test_the_budget_bounds_a_batch_but_an_oversize_job_still_runs() -> None:
    made = scheduler(job("a/1", tokens=60), job("b/1", tokens=60), job("c/1", tokens=40))
    assert batches(made) == [["a/1", "c/1"], ["b/1"]]
    assert batches(scheduler(job("a/1", tokens=500))) == [["a/1"]]


def test_who_was_served_goes_to_the_back() -> None:
    made = scheduler(*(job(f"{run}/{seq}", tokens=60) for run in "abc" for seq in (1, 2)))
    order = [batch[0] for batch in batches(made)]
    assert order == ["a/1", "b/1", "c/1", "a/2", "b/2", "c/2"]


def test_two_base_models_never_share_a_pass() -> None:
    made = scheduler(job("a/1"), job("b/1"), job("c/1"), bases={"b": "other"})
    assert batches(made) == [["a/1", "c/1"], ["b/1"]]
