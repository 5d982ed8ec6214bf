"""`tinsmith status`."""

import asyncio
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from tinsmith_server.bus import Bus
from tinsmith_server.settings import Settings
from tinsmith_server.status import RunStatus, Status, WorkerStatus
from tinsmith_server.status import status as ask


def status(
    json: Annotated[bool, typer.Option(help="Print it as JSON, for programs.")] = False,
    runs: Annotated[int, typer.Option(help="How many runs to list, who waits longest first.")] = 20,
) -> None:
    """Tell the state of the service: workers, leases, runs, and what waits for how long."""
    found = asyncio.run(_ask(Settings.from_environment().redis_url))
    if json:
        typer.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
        return
    console = Console()
    console.print(_workers(found.workers))
    console.print(_runs(found.runs[:runs]))
    if len(found.runs) > runs:
        console.print(f"and {len(found.runs) - runs} more runs (--runs)")
    console.print(_summary(found), highlight=False)


async def _ask(redis_url: str) -> Status:
    bus = Bus(redis_url)
    try:
        return await ask(bus)
    finally:
        await bus.close()


def _summary(found: Status) -> str:
    return (
        f"queued: {found.queued_requests} requests, {found.queued_samples} of them samples; "
        f"{found.queued_bytes} bytes, {found.queued_tokens} tokens; "
        f"oldest training future {_age(found.oldest_seconds)}; "
        f"last adoption {_age(found.last_adoption_seconds_ago)} ago"
    )


def _workers(workers: list[WorkerStatus]) -> Table:
    table = Table("worker", "base models", "lease", "runs", "samples")
    for one in workers:
        lease = "dead" if one.lease_seconds is None else f"{one.lease_seconds:.1f} s"
        numbers = (lease, str(one.num_runs), str(one.num_samples))
        table.add_row(one.name, ", ".join(one.base_models), *numbers)
    return table


def _runs(runs: list[RunStatus]) -> Table:
    table = Table("run", "organization", "worker", "waiting", "oldest", "done", "log", "snapshot")
    for run in runs:
        snapshot = f"at {run.snapshot_seq}, {_age(run.snapshot_age_seconds)} old"
        table.add_row(
            run.run_id,
            run.organization_id,
            run.worker or "none yet",
            str(run.num_waiting),
            _age(run.oldest_seconds),
            str(run.done),
            str(run.log_length),
            "none" if run.snapshot_seq < 0 else snapshot,
        )
    return table


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
