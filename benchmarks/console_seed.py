"""Fills a database with 10,000 runs and 100,000 checkpoints, and times every page of the console on it.

    python -m benchmarks.console_seed [--runs 10000] [--per-run 10] [--repeats 40]

One process, SQLite in a temporary folder and a Valkey of its own; pages are asked for one after another
through the whole application, by a signed-in owner. Prints milliseconds by page: median and p95 by the clock, median and p95 of CPU time.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
from sqlalchemy import insert, select
from tinsmith_server.accounts.members import set_up, setup_secret
from tinsmith_server.accounts.sign_in import open_session
from tinsmith_server.accounts.tables import Project
from tinsmith_server.app import create_app
from tinsmith_server.curves.collector import MOST_STEPS
from tinsmith_server.db import (
    ApiKey,
    AuditEntry,
    Checkpoint,
    Database,
    Organization,
    RunStep,
    Session,
    TrainingRun,
    Usage,
    now,
)
from tinsmith_server.embedded.process import stop_process
from tinsmith_server.embedded.valkey import start_valkey
from tinsmith_server.settings import Settings

_AT_ONCE = 5000
_RUNS_OF_SESSION = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--per-run", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=40)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, _valkey(Path(name)) as redis_url:
        folder = Path(name)
        settings = Settings(
            data_dir=folder,
            database_url=f"sqlite+aiosqlite:///{folder / 'tinsmith.db'}",
            redis_url=redis_url,
            store_url=str(folder / "store"),
            key_pepper=b"benchmark",
        )
        asyncio.run(_measure(settings, asked.runs, asked.per_run, asked.repeats))


@contextmanager
def _valkey(folder: Path) -> Iterator[str]:
    process, url = start_valkey(folder / "valkey", folder / "valkey.log")
    try:
        yield url
    finally:
        stop_process(process, 5)


async def _measure(settings: Settings, num_runs: int, per_run: int, repeats: int) -> None:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        db: Database = app.state.service.db
        async with db.begin() as sql:
            secret = setup_secret(settings.key_pepper)
            user = await set_up(sql, settings.key_pepper, secret, "a@b.example", "Ada", "x" * 16)
            cookie = await open_session(sql, user)
        async with db.begin() as sql:
            organization = str(await sql.scalar(select(Organization.id)))
        await seed(db, organization, num_runs, per_run)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://127.0.0.1", cookies={"tinsmith": cookie}
        ) as client:
            print(
                f"{num_runs} runs, {num_runs * per_run} checkpoints; ms: median and p95, of CPU too"
            )
            for path in pages(num_runs):
                await _timed(client, path)
                times = [await _timed(client, path) for _ in range(repeats)]
                told = [_median_and_p95(column) for column in zip(*times, strict=True)]
                print(f"{path:60} " + " ".join(f"{ms:8.1f}" for pair in told for ms in pair))


async def _timed(client: httpx.AsyncClient, path: str) -> tuple[float, float]:
    """By the clock, and of this process's CPU: the second holds on a machine that others use too."""
    began, busy = time.perf_counter(), time.process_time()
    answer = await client.get(path)
    assert answer.status_code == 200, (path, answer.status_code)
    return (time.perf_counter() - began) * 1000, (time.process_time() - busy) * 1000


def _median_and_p95(times: Sequence[float]) -> tuple[float, float]:
    return statistics.median(times), sorted(times)[int(0.95 * len(times))]


def pages(num_runs: int) -> list[str]:
    run = _run_id(num_runs - 1)
    return [
        "/",
        "/training_runs",
        f"/training_runs?{_in_the_middle(num_runs // 2)}",
        "/training_runs?q=lr%3D",
        "/training_runs?q=nowhere",
        "/training_runs?project=project-3",
        f"/training_runs/{run}",
        f"/training_runs/{run}/curves.json",
        f"/training_runs/compare?run={run}",
        f"/training_runs/compare.json?run={run}",
        "/sessions",
        "/sessions?q=team%3Dnorth",
        "/sessions?q=nowhere",
        f"/sessions/{_session_id((num_runs - 1) // _RUNS_OF_SESSION)}",
        "/checkpoints",
        f"/checkpoints?{_in_the_middle(num_runs // 2)}",
        "/checkpoints?q=step-7",
        "/checkpoints?q=nowhere",
        f"/checkpoints/{run}/weights/step-0",
        "/playground",
        "/keys",
        "/usage",
        "/usage.csv",
        "/usage.json?part=project_id",
        "/projects",
        "/members",
        "/audit",
        "/operators",
        "/account",
    ]


def _in_the_middle(index: int) -> str:
    at = now() - timedelta(days=30)
    return urlencode({"after": f"{at.isoformat()}~{_run_id(index)}"})


def _session_id(index: int) -> str:
    return f"sess-{index:020x}"


def _run_id(index: int) -> str:
    return f"{_session_id(index // _RUNS_OF_SESSION)}:train:{index % _RUNS_OF_SESSION}"


async def seed(db: Database, organization_id: str, num_runs: int, per_run: int) -> None:
    """The last run has all the steps that are kept of one; every other a dozen."""
    begin = now() - timedelta(days=60)
    each = timedelta(days=59) / num_runs
    whose = {"organization_id": organization_id}
    for table, rows in (
        (Project, [whose | {"id": f"project-{index}", "note": ""} for index in range(10)]),
        (ApiKey, [_key(whose, index) for index in range(100)]),
        (Session, [_session(whose, index, begin + each * index * _RUNS_OF_SESSION) for index in range(-(-num_runs // _RUNS_OF_SESSION))]),
        (TrainingRun, [_run(whose, index, begin + each * index) for index in range(num_runs)]),
        (Checkpoint, [_checkpoint(whose, run, index, begin + each * run) for run in range(num_runs) for index in range(per_run)]),
        (RunStep, [_step(run, step, begin + each * run) for run in range(num_runs) for step in range(1, 1 + (MOST_STEPS if run == num_runs - 1 else 12))]),
        (AuditEntry, [_entry(whose, index, begin + each * index / per_run) for index in range(num_runs * per_run)]),
        (Usage, [_usage(whose, index, begin) for index in range(num_runs)]),
    ):  # fmt: skip
        for at in range(0, len(rows), _AT_ONCE):
            async with db.begin() as sql:
                await sql.execute(insert(table), rows[at : at + _AT_ONCE])


def _key(whose: dict[str, str], index: int) -> dict[str, Any]:
    return whose | {
        "id": f"{index:012x}",
        "name": f"key {index}",
        "secret_hash": "",
        "created_at": now(),
    }


def _session(whose: dict[str, str], index: int, at: Any) -> dict[str, Any]:
    said = {"team": "north" if index % 2 else "south", "recipe": f"sft-{index % 7}"}
    more = {"id": _session_id(index), "project_id": f"project-{index % 10}", "user_metadata": said}
    return (
        whose | more | {"sdk_version": "0.38.0", "created_at": at, "key_id": f"{index % 100:012x}"}
    )


def _run(whose: dict[str, str], index: int, at: Any) -> dict[str, Any]:
    more = {"id": _run_id(index), "session_id": _session_id(index // _RUNS_OF_SESSION)}
    trained = {"train_attn": True, "train_mlp": True, "train_unembed": True, "lora_rank": 16}
    said = {"base_model": "some/model", "user_metadata": {"lr": str(index % 9)}}
    return whose | more | trained | said | {"created_at": at, "last_request_at": at}


def _checkpoint(whose: dict[str, str], run: int, index: int, at: Any) -> dict[str, Any]:
    kind = "weights" if index % 2 == 0 else "sampler_weights"
    more = {"id": f"{run}-{index}", "run_id": _run_id(run), "request_id": f"{run}:{index}"}
    at += timedelta(seconds=index)
    return (
        whose
        | more
        | {
            "kind": kind,
            "name": f"step-{index}",
            "ready": True,
            "size_bytes": 10**7,
            "created_at": at,
            "public": False,
        }
    )


def _step(run: int, step: int, at: Any) -> dict[str, Any]:
    numbers = {"loss": 3.0 / step, "drift": 0.01, "tokens": 4096, "grad_norm": 1.0 / step}
    return {
        "run_id": _run_id(run),
        "step": step,
        "at": at + timedelta(seconds=step),
        "learning_rate": 1e-4,
    } | numbers


def _entry(whose: dict[str, str], index: int, at: Any) -> dict[str, Any]:
    about = {
        "resource": "checkpoint",
        "action": "created",
        "details": {"model_id": _run_id(index // 10)},
    }
    return whose | about | {"id": f"{index:032x}", "at": at, "key_id": f"{index % 100:012x}"}


def _usage(whose: dict[str, str], index: int, begin: Any) -> dict[str, Any]:
    hour = (begin + timedelta(hours=index % 1400)).replace(minute=0, second=0, microsecond=0)
    return whose | {
        "hour": hour,
        "session_id": _session_id(index // _RUNS_OF_SESSION),
        "base_model": "some/model",
        "kind": "training",
        "tokens": 10_000 + index,
    }


if __name__ == "__main__":
    main()
