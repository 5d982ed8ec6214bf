"""What goes wrong, and when: drawn from a seed, spread over the clients' progress.

Blows fall at random counts of finished requests, not at times: on a slow machine as on a fast one there
is work under way when they do. A client that finishes the request at which one falls goes on once it has
fallen, so none is left over when the clients are through.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
    """Each lasts as long as its trouble does."""
    seed: int
    expected_requests: int
    blows: list[Blow] = field(default_factory=list)
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)
        span = range(self.expected_requests // 20, self.expected_requests * 9 // 10)
        self._counts = sorted(self._draw.sample(span, len(self.plan)))
        self._progress = threading.Condition()
        self._finished = 0
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="monkey")
        self._lasting = ThreadPoolExecutor(1, thread_name_prefix="trouble")
        self._trouble: Future[None] = self._lasting.submit(lambda: None)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """The clients are through; what lasts is waited for."""
        self._release_all()
        self._thread.join()
        self._lasting.shutdown()

    def finished_one(self) -> None:
        """Returns once every blow that was due by now has fallen."""
        with self._progress:
            self._finished += 1
            due = sum(count <= self._finished for count in self._counts)
            self._progress.notify_all()
            self._progress.wait_for(lambda: self._stopped or len(self.blows) >= due)

    @property
    def kills(self) -> int:
        return sum(blow.kills for blow in self.blows)

    def _run(self) -> None:
        try:
            for count, what in zip(self._counts, self.plan, strict=True):
                if not self._wait_for(count):
                    return
                self._strike(what)
            self._trouble.result()
        except BaseException as error:  # noqa: BLE001 - the test asserts that there was none
            self.error = error
            self._release_all()

    def _wait_for(self, count: int) -> bool:
        with self._progress:
            self._progress.wait_for(lambda: self._stopped or self._finished >= count)
            return not self._stopped

    def _release_all(self) -> None:
        with self._progress:
            self._stopped = True
            self._progress.notify_all()

    def _strike(self, what: str) -> None:
        kills = what in self.cluster.processes
        if not kills:
            self._trouble.result()  # one at a time; kills fall meanwhile
        began = time.monotonic()
        if kills:
            self.cluster.kill(what)
            self.cluster.start(what)
        elif what == "zombie":
            worker = self._draw.choice(["worker-0", "worker-1"])
            self._trouble = self._lasting.submit(self._zombie, worker)
        else:
            self._trouble = self._lasting.submit(self.others[what])
        with self._progress:
            self.blows.append(Blow(began, what, kills))
            self._progress.notify_all()

    def _zombie(self, worker: str) -> None:
        self.cluster.pause(worker)
        time.sleep(ZOMBIE_SECONDS)
        self.cluster.resume(worker)
