"""When a save counts. A checkpoint's row is written when the save is submitted and becomes ready when
its result is seen, before any client is told: by the poll that fetches it, or by the process that
follows the completions, whichever comes first. Both may; the second changes nothing.

And when it ends: deleted, overwritten or expired, its row is marked first and its files go after.
"""

from typing import Any

import msgspec
import structlog
from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from tinsmith.protocol.jobs import Kind, Result, SaveResult, encode
from tinsmith.protocol.paths import TinkerPath

from tinsmith_server.accounts import audit
from tinsmith_server.auth import Caller
from tinsmith_server.bus import Bus
from tinsmith_server.checkpoints.repository import expired, owned_at, path_of, prefix
from tinsmith_server.db import Checkpoint, Database, SamplingSession, Session, TrainingRun, now
from tinsmith_server.storage import Storage, StoreUnavailable

_log = structlog.get_logger()


class Checkpoints:
    def __init__(self, db: Database, bus: Bus, storage: Storage) -> None:
        self._db, self._bus, self._storage = db, bus, storage

    async def settle_all(self) -> None:
        """Settle every save that was pending at the start, then every one that completes."""
        completions = self._bus.completions()
        for request_id in await self._pending():
            await self._settle_if_done(request_id)
        async for request_id, kind in completions:
            if kind in (Kind.SAVE_WEIGHTS, Kind.SAVE_WEIGHTS_FOR_SAMPLER, "missing"):
                await self._settle_if_done(request_id)

    async def settle(self, request_id: str, result: Result) -> Result:
        """Record what came of a save; answers what the client is to be told."""
        if result.failed:
            await self._discard(request_id)
            return result
        saved = msgspec.json.decode(result.data, type=SaveResult)
        replaced = await self._make_ready(request_id, saved.size_bytes)
        for row in replaced:
            await self._delete_files(row)
        answer: dict[str, Any] = dict(saved.answer)
        if answer["type"] == "save_weights_external":
            answer["size_bytes"] = saved.size_bytes
        return Result(data=encode(answer))

    async def _delete_files(self, row: Checkpoint) -> None:
        """Unless a sampler still stands on them."""
        async with self._db.begin() as sql:
            stands = (SamplingSession.checkpoint_id == row.id) & SamplingSession.slot_run_id.is_(
                None
            )
            used = select(SamplingSession.id).where(stands)
            if await sql.scalar(used.limit(1)):
                return
        try:
            await self._storage.delete_folder(prefix(row))
        except StoreUnavailable as error:  # its row is marked: the background process deletes it
            _log.warning("files_not_deleted", prefix=prefix(row), error=str(error))

    async def _settle_if_done(self, request_id: str) -> None:
        try:
            if result := await self._bus.wait(request_id, 0):
                await self.settle(request_id, result)
        except Exception as error:  # noqa: BLE001 - the next save must still be settled
            _log.error("save_not_settled", request_id=request_id, exc_info=error)

    async def _pending(self) -> list[str]:
        async with self._db.begin() as sql:
            query = select(Checkpoint.request_id).where(Checkpoint.ready.is_(False))
            return list((await sql.scalars(query)).all())

    async def _make_ready(self, request_id: str, size_bytes: int) -> list[Checkpoint]:
        """The rows that it replaces, which are gone now."""
        async with self._db.begin() as sql:
            pending = (Checkpoint.request_id == request_id) & Checkpoint.ready.is_(False)
            won = update(Checkpoint).where(pending).values(ready=True, size_bytes=size_bytes)
            row = await sql.scalar(won.returning(Checkpoint))
            if row is None or row.name is None:
                return []
            key_id = await sql.scalar(
                select(Session.key_id)
                .join(TrainingRun, TrainingRun.session_id == Session.id)
                .where(TrainingRun.id == row.run_id)
            )
            self._record(sql, row, key_id, "checkpoint_created", size_bytes=size_bytes)
            older = (
                (Checkpoint.run_id == row.run_id)
                & (Checkpoint.kind == row.kind)
                & (Checkpoint.name == row.name)
                & (Checkpoint.id != row.id)
                & Checkpoint.ready
                & Checkpoint.deleted_at.is_(None)
            )
            replaced = list((await sql.scalars(select(Checkpoint).where(older))).all())
            for one in replaced:
                await self._mark_deleted(sql, one, key_id, "overwritten")
            return replaced

    async def delete(self, user: Caller, path: TinkerPath, *, by_user: str | None = None) -> None:
        """`by_user`: a member did it in the console, not a key."""
        async with self._db.begin() as sql:
            row, _ = await owned_at(sql, user, path)
            key_id = None if by_user else user.key_id
            await self._mark_deleted(sql, row, key_id, "deleted", by_user)
        await self._delete_files(row)

    async def delete_expired(self) -> int:
        """How many have expired since the last look."""
        async with self._db.begin() as sql:
            rows = await expired(sql)
            for row in rows:
                await self._mark_deleted(sql, row, None, "expired")
        for row in rows:
            await self._delete_files(row)
        return len(rows)

    async def _mark_deleted(
        self,
        sql: AsyncSession,
        row: Checkpoint,
        key_id: str | None,
        why: str,
        by_user: str | None = None,
    ) -> None:
        """One of several that try is the one who did it."""
        there = (Checkpoint.id == row.id) & Checkpoint.deleted_at.is_(None)
        marked = update(Checkpoint).where(there).values(deleted_at=now()).returning(Checkpoint.id)
        if await sql.scalar(marked) is not None and row.name is not None:
            self._record(sql, row, key_id, "checkpoint_deleted", by_user=by_user, reason=why)

    def _record(
        self, sql: AsyncSession, row: Checkpoint, key_id: str | None, event: str, **details: Any
    ) -> None:
        path = path_of(row)
        details |= {"model_id": path.run_id, "tinker_path": str(path)}
        audit.record(sql, row.organization_id, key_id, event, **details)

    async def _discard(self, request_id: str) -> None:
        async with self._db.begin() as sql:
            await sql.execute(
                delete(SamplingSession).where(SamplingSession.request_id == request_id)
            )
            await sql.execute(delete(Checkpoint).where(Checkpoint.request_id == request_id))
