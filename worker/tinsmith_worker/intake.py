"""What a worker knows of the runs that it is home to, and what it takes of them for the scheduler."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tinsmith.protocol.jobs import failure

from tinsmith_worker.queue import Queue, Retaken, Taken
from tinsmith_worker.scheduler import Scheduler


@dataclass(frozen=True)
class Home:
    base_model: str
    epoch: int
    taken: int = -1
    """The last seq of it that TAKE has given."""


_UNKNOWN = Home("", 0)


class Intake:
    def __init__(
        self,
        queue: Queue,
        scheduler: Scheduler,
        *,
        max_tokens: int,
        gap_seconds: float,
        on_new_epoch: Callable[[str], None],
    ) -> None:
        """`on_new_epoch`: of the run, whatever was taken under an old epoch is history."""
        self._queue, self._scheduler, self._on_new_epoch = queue, scheduler, on_new_epoch
        self._max_tokens, self._gap_seconds = max_tokens, gap_seconds
        self._homes: dict[str, Home] = {}
        self._news: set[str] = set()
        self._gaps: dict[str, float] = {}
        """Runs whose next op is missing, and since when."""

    def epoch_of(self, run_id: str) -> int | None:
        """None of a run that is not at home here."""
        home = self._homes.get(run_id)
        return home.epoch if home else None

    def hear(self, run_ids: Iterable[str]) -> None:
        """Something may have happened to these runs."""
        self._news.update(run_ids)

    def look_at_gaps(self) -> None:
        self.hear(self._gaps)

    def leave(self, run_id: str) -> None:
        self._homes.pop(run_id, None)

    def retake(self, retaken: Mapping[str, Retaken]) -> None:
        """Nothing of these runs is taken, under their new epochs; no other run is at home here."""
        self._homes = {
            run_id: Home(home.base_model, retaken[run_id].epoch)
            for run_id, home in self._homes.items()
            if run_id in retaken
        }
        self.hear(retaken)

    @property
    def takeable(self) -> set[str]:
        """Runs with news of which not enough waits here already."""
        return {one for one in self._news if self._scheduler.has_room(one, self._max_tokens)}

    def take(self) -> None:
        asked = self.takeable
        if not asked:
            return
        homes = {run_id: self._homes.get(run_id, _UNKNOWN) for run_id in sorted(asked)}
        at = {run_id: (home.epoch, home.taken) for run_id, home in homes.items()}
        taken = self._queue.take(at, self._max_tokens)
        self._news -= asked
        for run_id in asked - {line.run_id for line in taken}:  # not ours, or ended
            self._gaps.pop(run_id, None)
        self._news |= {line.run_id for line in taken if line.status == "more"}
        for line in taken:
            self._settle_in(line)
            for job in line.jobs:
                self._scheduler.add(job, line.base_model, line.organization)
            if line.status == "gap" and not line.jobs:
                self._gaps.setdefault(line.run_id, time.monotonic())
                self._close_gap_in_time(line)
            else:
                self._gaps.pop(line.run_id, None)

    def _settle_in(self, line: Taken) -> None:
        """Under a new epoch, what was claimed under an old one has been taken again."""
        home = self._homes.get(line.run_id)
        if home is None or home.epoch != line.epoch:
            self._on_new_epoch(line.run_id)
        self._homes[line.run_id] = Home(line.base_model, line.epoch, line.last)

    def _close_gap_in_time(self, line: Taken) -> None:
        if time.monotonic() - self._gaps[line.run_id] < self._gap_seconds:
            return
        seq_id = line.last + 1
        waited = f"{self._gap_seconds:g} s"
        missing = failure(f"seq_id: request {seq_id} of this run did not arrive within {waited}.")
        behind = failure(
            f"seq_id: request {seq_id} of this run did not arrive within {waited}, and this one, "
            "which waited behind it, was not run. Send both again under new numbers.",
            "server",
        )
        self._queue.close_gap(line.run_id, line.epoch, missing, behind)
        del self._gaps[line.run_id]
