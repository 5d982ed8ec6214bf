"""Chooses what runs next. No clock, no Redis, no torch.

A run's ops are begun in `seq_id` order. Those that run tokens through the model may be in work
together, whoever's they are; any other waits until its run has nothing in work.
"""

from collections import deque
from dataclasses import dataclass, field

from tinsmith.protocol.jobs import Job

MAX_IN_WORK = 32
"""Requests that gather a gradient of their own at one time."""


@dataclass
class Line:
    """One run's jobs, in order; TAKE hands them over contiguous."""

    base_model: str
    jobs: deque[Job] = field(default_factory=deque)
    in_work: int = 0
    alone: bool = False
    """Whether what is in work lets nothing else of the run begin."""


class Scheduler:
    def __init__(self, max_tokens_in_work: int) -> None:
        self._max_tokens = max_tokens_in_work
        self._tokens = 0
        self._requests = 0
        self.lines: dict[str, Line] = {}

    def add(self, job: Job, base_model: str) -> None:
        self.lines.setdefault(job.run_id, Line(base_model)).jobs.append(job)

    def drop(self, run_id: str) -> None:
        """The run moved away: what it claimed here will run there."""
        line = self.lines.get(run_id)
        if line is None:
            return
        line.jobs.clear()
        self._tidy(run_id)

    def clear(self) -> None:
        """Begin anew: whatever was here, begun or not, will be added again."""
        self.lines.clear()
        self._tokens = self._requests = 0

    def busy_with(self, run_id: str) -> bool:
        return run_id in self.lines

    @property
    def can_begin(self) -> bool:
        """Whether anything waits for nothing but its turn."""
        return any(
            line.jobs and (not line.in_work or self._joins(line)) for line in self.lines.values()
        )

    def next_alone(self) -> list[Job]:
        """The head of every run whose turn it is and that needs no pass; each is then in work."""
        ready = [
            run_id
            for run_id, line in self.lines.items()
            if line.jobs and not line.in_work and not line.jobs[0].kind.needs_pass
        ]
        return [self._begin(run_id) for run_id in ready]

    def next_passes(self) -> list[Job]:
        """Forward ops that may join those in work: one a run a round, while the budget lasts."""
        begun: list[Job] = []
        found = True
        while found:
            found = False
            for run_id, line in list(self.lines.items()):
                if self._joins(line):
                    begun.append(self._begin(run_id))
                    found = True
        return begun

    def _joins(self, line: Line) -> bool:
        """The first is never asked for its size: over budget or not, somebody has to run it."""
        if line.alone or not line.jobs or not line.jobs[0].kind.needs_pass:
            return False
        fits = self._tokens + line.jobs[0].num_tokens <= self._max_tokens
        return self._requests < MAX_IN_WORK and (fits or not self._requests)

    def _begin(self, run_id: str) -> Job:
        """Its head; the run goes to the back of the round."""
        line = self.lines.pop(run_id)
        self.lines[run_id] = line
        job = line.jobs.popleft()
        line.in_work += 1
        line.alone = not job.kind.needs_pass
        if job.kind.needs_pass:
            self._tokens += job.num_tokens
            self._requests += 1
        return job

    def finished(self, job: Job) -> None:
        """It is answered, or will be by another worker."""
        if job.kind.needs_pass:
            self._tokens -= job.num_tokens
            self._requests -= 1
        line = self.lines[job.run_id]
        line.in_work -= 1
        line.alone = False
        self._tidy(job.run_id)

    def _tidy(self, run_id: str) -> None:
        line = self.lines[run_id]
        if not line.jobs and not line.in_work:
            del self.lines[run_id]
