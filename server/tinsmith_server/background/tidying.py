"""What is thrown away, and when: a chore of the background process.

Expired checkpoints, the weights behind unnamed samplers of sessions that have ended, and whatever lies
in the store with nothing pointing to it: a process that was killed between two steps leaves such things.
A row is marked first and its files go after, so a run of this that dies is finished by the next one.
"""

import asyncio
from collections import defaultdict
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select, update
from tinsmith.protocol.store_layout import (
    CHECKPOINTS,
    EXPORTS,
    SNAPSHOTS,
    UPLOADS,
    run_folder,
)

from tinsmith_server.bus import Bus
from tinsmith_server.checkpoints.service import Checkpoints
from tinsmith_server.db import Checkpoint, Database, SamplingSession, Session, TrainingRun, now
from tinsmith_server.settings import Settings
from tinsmith_server.storage import Storage

GRACE = timedelta(days=1)
"""How long what nothing points to may still be on its way: a copy is written before its row is."""


@dataclass(frozen=True)
class Tidied:
    """How many of each."""

    expired: int
    unnamed: int
    orphaned: int
    snapshots: int
    exchanged: int = 0
    """What was exported, or came from outside and was never taken in."""


class Tidying:
    def __init__(self, db: Database, bus: Bus, storage: Storage) -> None:
        self._db, self._bus, self._storage = db, bus, storage

    async def run(self) -> Tidied:
        return Tidied(
            expired=await Checkpoints(self._db, self._bus, self._storage).delete_expired(),
            unnamed=await self._mark_unnamed(),
            orphaned=await self._delete_checkpoints(),
            snapshots=await self._delete_snapshots(),
            exchanged=await self._delete_exchanged(),
        )

    async def _delete_exchanged(self) -> int:
        """As long as their job can be asked for, they stay."""
        found = await self._storage.folders(EXPORTS) | await self._storage.folders(UPLOADS)
        return await self._delete([one for one, at in found.items() if at < now() - GRACE])

    async def _mark_unnamed(self) -> int:
        """Nobody can sample from them any more, and nobody ever could list them."""
        ended = (
            select(TrainingRun.id)
            .join(Session, Session.id == TrainingRun.session_id)
            .where(Session.finished_at.is_not(None))
        )
        unnamed = (
            Checkpoint.name.is_(None)
            & Checkpoint.deleted_at.is_(None)
            & Checkpoint.run_id.in_(ended)
        )
        async with self._db.begin() as sql:
            marked = update(Checkpoint).where(unnamed).values(deleted_at=now())
            return len((await sql.scalars(marked.returning(Checkpoint.id))).all())

    async def _delete_checkpoints(self) -> int:
        """Folders whose row is marked, or that never had one, unless a sampler stands on them."""
        folders = await self._storage.folders(CHECKPOINTS)
        kept = await self._kept_checkpoints()
        known = await self._known_checkpoints()
        gone = [
            folder
            for folder, written in folders.items()
            if (name := folder.rpartition("/")[2]) not in kept
            and (name in known or written < now() - GRACE)
        ]
        return await self._delete(gone)

    async def _known_checkpoints(self) -> set[str]:
        async with self._db.begin() as sql:
            return set(await sql.scalars(select(Checkpoint.id)))

    async def _kept_checkpoints(self) -> set[str]:
        """Those that are there, and those that a sampler of an open session stands on."""
        stood_on = (
            select(SamplingSession.checkpoint_id)
            .join(Session, Session.id == SamplingSession.session_id)
            .where(
                Session.finished_at.is_(None),
                SamplingSession.checkpoint_id.is_not(None),
                SamplingSession.slot_run_id.is_(None),
            )
        )
        async with self._db.begin() as sql:
            there = await sql.scalars(select(Checkpoint.id).where(Checkpoint.deleted_at.is_(None)))
            return {*there, *(one for one in await sql.scalars(stood_on) if one is not None)}

    async def _delete_snapshots(self) -> int:
        """Those that their run does not begin from, once they have had their time."""
        by_run: defaultdict[str, dict[str, datetime]] = defaultdict(dict)
        for folder, written in (await self._storage.folders(SNAPSHOTS, depth=2)).items():
            by_run[folder.rpartition("/")[0]][folder] = written
        open_runs = await self._open_runs()
        gone = []
        for place, snapshots in by_run.items():
            kept = None
            if place in open_runs:
                # Of a run that Redis has forgotten, the newest is all there is.
                kept = await self._bus.snapshot_of(open_runs[place])
                kept = kept or max(snapshots, key=lambda folder: snapshots[folder])
            old = now() - GRACE
            gone += [one for one, at in snapshots.items() if one != kept and at < old]
        return await self._delete(gone)

    async def _open_runs(self) -> dict[str, str]:
        """Runs of open sessions, by where their snapshots lie."""
        query = (
            select(TrainingRun.id)
            .join(Session, Session.id == TrainingRun.session_id)
            .where(Session.finished_at.is_(None))
        )
        async with self._db.begin() as sql:
            return {run_folder(run_id): run_id for run_id in await sql.scalars(query)}

    async def _delete(self, folders: list[str]) -> int:
        for folder in folders:
            await self._storage.delete_folder(folder)
        return len(folders)


def tidy(job_id: str) -> dict[str, Any]:
    """In the background process."""
    return {"result": asdict(asyncio.run(_tidy(Settings.from_environment())))}


async def _tidy(settings: Settings) -> Tidied:
    db, bus = Database(settings.database_url), Bus(settings.redis_url)
    try:
        return await Tidying(db, bus, Storage(settings.store_url)).run()
    finally:
        await bus.close()
        await db.close()
