"""When a save counts. A checkpoint's row is written when the save is submitted and becomes ready when
its result is seen, before any client is told: by the poll that fetches it, or by the process that
follows the completions, whichever comes first. Both may; the second changes nothing.
"""

import msgspec
import structlog
from sqlalchemy import delete, select
from tinsmith.protocol.jobs import Kind, Result, SaveResult, encode

from tinsmith_server.bus import Bus
from tinsmith_server.checkpoints.repository import prefix
from tinsmith_server.db import Checkpoint, Database, SamplingSession
from tinsmith_server.storage import Storage

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
            await self.delete_files(row)
        return Result(data=encode(saved.answer))

    async def delete_files(self, row: Checkpoint) -> None:
        """Unless a sampler still stands on them."""
        async with self._db.begin() as sql:
            used = select(SamplingSession.id).where(SamplingSession.checkpoint_id == row.id)
            if await sql.scalar(used.limit(1)):
                return
        await self._storage.delete_folder(prefix(row))

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
            row = await sql.scalar(select(Checkpoint).where(Checkpoint.request_id == request_id))
            if row is None or row.ready:
                return []
            row.ready, row.size_bytes = True, size_bytes
            if row.name is None:
                return []
            older = (
                (Checkpoint.run_id == row.run_id)
                & (Checkpoint.kind == row.kind)
                & (Checkpoint.name == row.name)
                & (Checkpoint.id != row.id)
                & Checkpoint.ready
            )
            replaced = list((await sql.scalars(select(Checkpoint).where(older))).all())
            for one in replaced:
                await sql.delete(one)
            return replaced

    async def _discard(self, request_id: str) -> None:
        async with self._db.begin() as sql:
            await sql.execute(
                delete(SamplingSession).where(SamplingSession.request_id == request_id)
            )
            await sql.execute(delete(Checkpoint).where(Checkpoint.request_id == request_id))
