"""Whatever dies, every client reads what it would have read undisturbed, to the last bit."""

from pathlib import Path

from tests.chaos.cluster import running_cluster
from tests.chaos.drill import check, drill

SEED = 4
PLAN = ["worker-0", "valkey", "api-0", "worker-1", "api-1"]


def test_five_kills_change_nothing_that_a_client_is_told(tmp_path: Path) -> None:
    with running_cluster(tmp_path, str(tmp_path / "store")) as cluster:
        report = drill(cluster, clients=3, steps=10, plan=PLAN, others={}, seed=SEED)
        check(cluster, report, kills=len(PLAN))
        # Alone on a machine 15 s at most; `make chaos` prints it. This bound is for a busy one.
        assert report.longest_wait_seconds < 60
