"""Chooses which jobs share the next pass. No clock, no Redis, no torch.

Policy: each run's ops run in order. Ops that need no pass over the base model (create, step, save)
go first. Then the heads of as many runs of one base model as fit the token budget share a pass, at
most one request of a run: so what a run's gradient adds up to, and in which order, depends on the
run alone. Runs are served in turn: who was served goes to the back.
"""

from collections import deque
from dataclasses import dataclass, field

from tinsmith.protocol.jobs import Job


@dataclass
class Line:
    """One run's claimed jobs, in seq_id order."""

    base_model: str
    jobs: deque[Job] = field(default_factory=deque)


class Scheduler:
    def __init__(self, max_batch_tokens: int) -> None:
        self.max_batch_tokens = max_batch_tokens
        self.lines: dict[str, Line] = {}

    def add(self, job: Job, base_model: str) -> None:
        self.lines.setdefault(job.run_id, Line(base_model)).jobs.append(job)

    def drop(self, run_id: str) -> None:
        """The run moved away: what it claimed here will run there."""
        self.lines.pop(run_id, None)

    def next_batch(self) -> list[Job]:
        """One op that needs no pass, or the forward ops that share the next one."""
        for run_id, line in self.lines.items():
            if not line.jobs[0].kind.needs_pass:
                return [self._pop(run_id)]
        batch: list[Job] = []
        base_model = ""
        for run_id, line in list(self.lines.items()):
            if not batch:
                base_model = line.base_model
            elif line.base_model != base_model or not self._fits(line.jobs[0], batch):
                continue
            batch.append(self._pop(run_id))
        return batch

    def _fits(self, job: Job, batch: list[Job]) -> bool:
        """The first job of a batch is never asked: over budget or not, somebody has to run it."""
        return sum(other.num_tokens for other in batch) + job.num_tokens <= self.max_batch_tokens

    def _pop(self, run_id: str) -> Job:
        """The run's head; the run goes to the back of the round, or leaves it when empty."""
        line = self.lines.pop(run_id)
        job = line.jobs.popleft()
        if line.jobs:
            self.lines[run_id] = line
        return job
