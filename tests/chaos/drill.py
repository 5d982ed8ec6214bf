"""A drill: undisturbed twins, then the same clients under blows, then what must be equal."""

import io
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import httpx
from tinsmith.protocol.paths import TinkerPath

from tests.chaos.auditor import Auditor
from tests.chaos.client import Client, Wait
from tests.chaos.cluster import Cluster
from tests.chaos.monkey import ZOMBIE_SECONDS, Blow, Monkey


@dataclass(frozen=True)
class Report:
    twins: list[Client]
    clients: list[Client]
    blows: list[Blow]
    kills: int
    futures: int
    changed: list[str]
    seconds: float

    @property
    def longest_wait_seconds(self) -> float:
        """From a worker's death to the answer of a request that was under way then."""
        return max((after for _, after in self._after_deaths()), default=0.0)

    def summary(self) -> str:
        return (
            f"{self.kills} kills and {len(self.blows) - self.kills} other blows in "
            f"{self.seconds:.0f} s; {self.futures} futures; longest wait after a worker's death "
            f"{self.longest_wait_seconds:.1f} s; longest wait of all "
            f"{max(one.ended - one.began for one in self._waits):.1f} s; saves refused by a full "
            f"disk {sum(client.refused_saves for client in self.clients)}"
        )

    def longest(self, count: int) -> Iterator[str]:
        """The waits that were longest after a death, one for each, with all that fell meanwhile."""
        told: set[float] = set()
        for wait, after in sorted(self._after_deaths(), key=lambda one: -one[1]):
            death = wait.ended - after
            if len(told) < count and death not in told:
                told.add(death)
                fell = [
                    f"{blow.what} {blow.at - death:+.1f} s"
                    for blow in self.blows
                    if death - ZOMBIE_SECONDS <= blow.at < wait.ended
                ]
                yield f"{after:.1f} s for {wait.what}: {', '.join(fell)}"

    def _after_deaths(self) -> Iterator[tuple[Wait, float]]:
        """Each wait with a worker's death in it, from the first such death on."""
        deaths = [blow.at for blow in self.blows if blow.what.startswith("worker")]
        for wait in self._waits:
            if spanned := [death for death in deaths if wait.began <= death < wait.ended]:
                yield wait, wait.ended - spanned[0]

    @property
    def _waits(self) -> list[Wait]:
        return [wait for client in self.clients for wait in client.waits]


def drill(
    cluster: Cluster,
    *,
    clients: int,
    steps: int,
    plan: Sequence[str],
    others: dict[str, Callable[[], None]],
    seed: int,
) -> Report:
    twins = _clients(cluster, clients, steps)
    _run(twins)
    asked = sum(len(twin.waits) for twin in twins)
    monkey = Monkey(cluster, plan, others, seed, expected_requests=asked)
    under_blows = _clients(cluster, clients, steps, monkey.finished_one)
    auditor = Auditor(cluster, under_blows)
    began = time.monotonic()
    monkey.start()
    auditor.start()
    try:
        _run(under_blows)
    finally:
        monkey.stop()
        auditor.stop()
    seconds = time.monotonic() - began
    cluster.wait_until_ready()
    if monkey.error:
        raise monkey.error
    return Report(
        twins,
        under_blows,
        monkey.blows,
        monkey.kills,
        len(auditor.answers),
        auditor.changed(),
        seconds,
    )


def _clients(
    cluster: Cluster, count: int, steps: int, progress: Callable[[], None] = lambda: None
) -> list[Client]:
    return [
        Client(cluster.url, cluster.api_key, seed, steps, progress) for seed in range(1, count + 1)
    ]


def _run(clients: Sequence[Client]) -> None:
    threads: list[threading.Thread] = [client.start() for client in clients]
    for thread in threads:
        thread.join()
    for client in clients:
        if client.error:
            raise client.error


def check(cluster: Cluster, report: Report, kills: int) -> None:
    """Nothing that a client was told, or has now, differs from what its twin was told."""
    assert report.kills == kills
    assert report.futures > 0
    assert report.changed == []
    for twin, client in zip(report.twins, report.clients, strict=True):
        assert client.transcript == twin.transcript, f"client {client.seed}"
        theirs = weights(cluster, client.final_path)
        assert theirs
        assert theirs == weights(cluster, twin.final_path), f"client {client.seed}"


def weights(cluster: Cluster, path: str) -> dict[str, bytes]:
    """A checkpoint's tensors, as a client downloads them."""
    parsed = TinkerPath.parse(path)
    place = f"training_runs/{parsed.run_id}/checkpoints/{parsed.checkpoint_id}/archive"
    answer = httpx.get(
        f"{cluster.url}/api/v1/{place}",
        headers={"X-API-Key": cluster.api_key},
        follow_redirects=True,
        trust_env=False,
    )
    answer.raise_for_status()
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        files = {one.name: archive.extractfile(one) for one in archive.getmembers()}
        return {
            name: file.read()
            for name, file in files.items()
            if file is not None and name.endswith(".safetensors")
        }
