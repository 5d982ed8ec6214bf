"""What goes wrong, and when: drawn from a seed, spread over the clients' progress.

Blows fall at random counts of finished requests, not at times: on a slow machine as on a fast one there
is work under way when they do.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.chaos.cluster import Cluster

ZOMBIE_SECONDS = 7.0
"""Longer than a lease: meanwhile the worker's runs have found another home."""


@dataclass(frozen=True)
class Blow:
    """At a monotonic time; `kills` says whether a process lost its life."""

    at: float
    what: str
    kills: bool


@dataclass
class Monkey:
    cluster: Cluster
    plan: Sequence[str]
    """What it strikes, in order: a process's name, `zombie`, or one of `others`."""
    others: dict[str, Callable[[], None]]
    seed: int
    expected_requests: int
    blows: list[Blow] = field(default_factory=list)
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)
        self._progress = threading.Condition()
        self._finished = 0
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="monkey")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """The clients are through: what is left of the plan is left."""
        with self._progress:
            self._stopped = True
            self._progress.notify()
        self._thread.join()

    def finished_one(self) -> None:
        with self._progress:
            self._finished += 1
            self._progress.notify()

    @property
    def kills(self) -> int:
        return sum(blow.kills for blow in self.blows)

    def _run(self) -> None:
        span = range(self.expected_requests // 20, self.expected_requests * 9 // 10)
        counts = sorted(self._draw.sample(span, len(self.plan)))
        try:
            for count, what in zip(counts, self.plan, strict=True):
                if not self._wait_for(count):
                    return
                self._strike(what)
        except BaseException as error:  # noqa: BLE001 - the test asserts that there was none
            self.error = error

    def _wait_for(self, count: int) -> bool:
        with self._progress:
            self._progress.wait_for(lambda: self._stopped or self._finished >= count)
            return not self._stopped

    def _strike(self, what: str) -> None:
        self.blows.append(Blow(time.monotonic(), what, kills=what in self.cluster.processes))
        if what == "zombie":
            self._zombie(self._draw.choice(["worker-0", "worker-1"]))
        elif what in self.cluster.processes:
            self.cluster.kill(what)
            self.cluster.start(what)
        else:
            self.others[what]()

    def _zombie(self, worker: str) -> None:
        self.cluster.pause(worker)
        time.sleep(ZOMBIE_SECONDS)
        self.cluster.resume(worker)
