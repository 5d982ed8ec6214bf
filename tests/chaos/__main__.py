"""The long form: `make chaos`, or `python -m tests.chaos --kills 40 --seed 7`."""

import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tests.chaos.cluster import APIS, WORKERS, Cluster, running_cluster
from tests.chaos.drill import check, drill
from tests.chaos.small_disk import CannotMount, SmallDisk, small_disk


def main(
    seed: Annotated[int, typer.Option(help="Of the plan and of when each blow falls.")] = 1,
    kills: Annotated[int, typer.Option(help="Processes that are killed with SIGKILL.")] = 40,
    clients: int = 8,
    steps: Annotated[int, typer.Option(help="Optimizer steps of each client.")] = 60,
    folder: Annotated[Path | None, typer.Option(help="Where logs stay; default: gone.")] = None,
) -> None:
    with tempfile.TemporaryDirectory(prefix="tinsmith-chaos-") as made:
        place = folder or Path(made)
        place.mkdir(parents=True, exist_ok=True)
        with _disk(place / "disk") as disk, running_cluster(place, _store(place, disk)) as cluster:
            others = _others(cluster, disk)
            plan = _plan(random.Random(seed), kills, list(others))
            report = drill(
                cluster, clients=clients, steps=steps, plan=plan, others=others, seed=seed
            )
            typer.echo(f"seed {seed}: {report.summary()}")
            for line in report.longest(5):
                typer.echo(f"  {line}")
            check(cluster, report, kills)
            typer.echo("Every client read what its undisturbed twin read, to the last bit.")


def _plan(draw: random.Random, kills: int, others: list[str]) -> list[str]:
    victims = [*WORKERS, *APIS, "valkey"]
    plan = [draw.choice(victims) for _ in range(kills)]
    plan += ["zombie"] * max(1, kills // 10) + others * max(1, kills // 20)
    draw.shuffle(plan)
    return plan


def _others(cluster: Cluster, disk: SmallDisk | None) -> dict[str, Callable[[], None]]:
    others: dict[str, Callable[[], None]] = {"database": cluster.postgres.crash_and_restart}
    if disk is not None:
        others |= {"full disk": disk.fill, "read-only disk": disk.refuse}
    return others


@contextmanager
def _disk(folder: Path) -> Iterator[SmallDisk | None]:
    try:
        with small_disk(folder) as disk:
            yield disk
    except CannotMount as error:
        typer.echo(f"Without a full or read-only disk: {error}.")
        yield None


def _store(place: Path, disk: SmallDisk | None) -> str:
    return str((disk.folder if disk else place) / "store")


if __name__ == "__main__":
    typer.run(main)
