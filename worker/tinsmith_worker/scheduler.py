"""Chooses what runs next. No clock, no Redis, no torch.

A run's ops are begun in `seq_id` order. Those that run tokens through the model may be in work
together, whoever's they are; any other waits until its run has nothing in work. Organizations take
turns by tokens, and within each its runs do. So whoever asks for little waits for what is in work and
not for what others have queued.
"""

from collections import Counter, deque
from dataclasses import dataclass, field

from tinsmith.protocol.jobs import Job

from tinsmith_worker.fair import Round

SHARED_IN_WORK = 32
"""Requests that gather a gradient of their own at one time."""
_RESERVED = 8
"""And so many more, of organizations that have nothing in work yet."""
_TURNS = 16
"""Into how many turns a full budget is cut."""


@dataclass
class Line:
    """One run's jobs, in order; TAKE hands them over contiguous."""

    base_model: str
    organization: str
    jobs: deque[Job] = field(default_factory=deque)
    in_work: int = 0
    alone: bool = False
    """Whether what is in work lets nothing else of the run begin."""

    @property
    def waiting_tokens(self) -> int:
        return sum(max(job.num_tokens, 1) for job in self.jobs)


class Scheduler:
    def __init__(self, max_tokens_in_work: int) -> None:
        self._max_tokens = max_tokens_in_work
        self._tokens = 0
        self._in_work: Counter[str] = Counter()
        """Requests that run tokens, by organization."""
        self._newcomers: set[str] = set()
        self._quantum = max(1, max_tokens_in_work // _TURNS)
        self._organizations = Round(self._quantum)
        self._runs: dict[str, Round] = {}
        self.lines: dict[str, Line] = {}

    def add(self, job: Job, base_model: str, organization: str = "") -> None:
        line = self.lines.setdefault(job.run_id, Line(base_model, organization))
        line.jobs.append(job)

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
        self._in_work.clear()
        self._runs.clear()
        self._tokens = 0

    def busy_with(self, run_id: str) -> bool:
        return run_id in self.lines

    def has_room(self, run_id: str, tokens: int) -> bool:
        """Whether fewer than so many tokens of the run wait here."""
        line = self.lines.get(run_id)
        return line is None or line.waiting_tokens < tokens

    def is_newcomer(self, job: Job) -> bool:
        """Whether its organization had nothing in work before the last round."""
        return self.lines[job.run_id].organization in self._newcomers

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
        """Forward ops that may join those in work, while the budget lasts."""
        begun: list[Job] = []
        self._newcomers = {name for name in self._ready() if not self._in_work[name]}
        while ready := self._ready():
            organization = self._organizations.next(ready)
            runs = self._runs.setdefault(organization, Round(self._quantum))
            run_id = runs.next(ready[organization])
            job = self._begin(run_id)
            self._organizations.charge(organization, job.num_tokens)
            runs.charge(run_id, job.num_tokens)
            begun.append(job)
        return begun

    def _ready(self) -> dict[str, dict[str, None]]:
        """Runs whose head may join, by organization, both in a steady order."""
        ready: dict[str, dict[str, None]] = {}
        for run_id, line in self.lines.items():
            if self._joins(line):
                ready.setdefault(line.organization, {})[run_id] = None
        return ready

    def _joins(self, line: Line) -> bool:
        """Of whom nothing is in work is never asked for its size: over budget or not, somebody has to
        run it, and it must not wait for others' large ones.
        """
        if line.alone or not line.jobs or not line.jobs[0].kind.needs_pass:
            return False
        requests = self._in_work.total()
        if not self._in_work[line.organization]:
            return requests < SHARED_IN_WORK + _RESERVED
        fits = self._tokens + line.jobs[0].num_tokens <= self._max_tokens
        return requests < SHARED_IN_WORK and fits

    def _begin(self, run_id: str) -> Job:
        """Its head."""
        line = self.lines[run_id]
        job = line.jobs.popleft()
        line.in_work += 1
        line.alone = not job.kind.needs_pass
        if job.kind.needs_pass:
            self._tokens += job.num_tokens
            self._in_work[line.organization] += 1
        return job

    def finished(self, job: Job) -> None:
        """It is answered, or will be by another worker."""
        line = self.lines[job.run_id]
        if job.kind.needs_pass:
            self._tokens -= job.num_tokens
            self._in_work[line.organization] -= 1
        line.in_work -= 1
        line.alone = False
        self._tidy(job.run_id)

    def _tidy(self, run_id: str) -> None:
        line = self.lines[run_id]
        if line.jobs or line.in_work:
            return
        del self.lines[run_id]
        if all(other.organization != line.organization for other in self.lines.values()):
            self._runs.pop(line.organization, None)
            self._in_work.pop(line.organization, None)
