"""The server's end of the queue: submit, wait, cancel. It never looks inside a body.

Two things can race here. A result may land between a poll's look and its wait, so a waiter registers
before it looks. And a poll may reach another API process than the submit, so every process tails the
stream of completions; a stream, unlike pub/sub, loses nothing while a connection is down.
"""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError
from tinsmith.protocol import keys
from tinsmith.protocol.bodies import Completion
from tinsmith.protocol.errors import BadRequest, NotFound, TooMany
from tinsmith.protocol.jobs import Content, Job, Kind, ModelCard, Result, failure
from tinsmith.protocol.provenance import RECORD_SECONDS, Recorded
from tinsmith.protocol.scripts import script

from tinsmith_server.asking import ORIGIN
from tinsmith_server.limits import Bounds, Refusal

RESULT_TTL_MS = 6 * 3600 * 1000
_SCRIPTS = Path(__file__).parent / "scripts"
_UNBOUNDED = Bounds()
_log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class FutureState:
    tenant: str
    kind: str
    result: Result | None
    """None while it is pending."""


class Bus:
    def __init__(self, redis_url: str) -> None:
        pool = BlockingConnectionPool.from_url(redis_url, max_connections=64, timeout=30)
        self.redis: Any = Redis(connection_pool=pool)
        self._submit = self._script("admit", "submit")
        self._submit_sample = self._script("admit", "submit_sample")
        self._cancel = self._script("release", "cancel")
        self._cancel_line = self._script("release", "cancel_line")
        self._end_run = self._script("release", "end_run")
        self._look = self._script("look")
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._draining = False
        self._listeners: set[asyncio.Queue[tuple[str, str]]] = set()
        self._notices: defaultdict[str, set[asyncio.Queue[str]]] = defaultdict(set)
        self._tail: asyncio.Task[None] | None = None
        self._closing = False
        self._heard_at = time.monotonic()

    def _script(self, *parts: str) -> Any:
        return self.redis.register_script(script(_SCRIPTS, *parts))

    async def start(self) -> None:
        """Begin to follow the streams, from now on: whoever asks later looks before it waits."""
        last = {keys.DONE: await self._last(keys.DONE), keys.CTL: await self._last(keys.CTL)}
        self._tail = asyncio.create_task(self._follow(last), name="bus-tail")

    async def close(self) -> None:
        self._closing = True  # a cancelled read can end as a time-out, and would be tried again
        if self._tail:
            self._tail.cancel()
            await asyncio.gather(self._tail, return_exceptions=True)
        await self.redis.aclose()
        await self.redis.connection_pool.disconnect()

    # Submitting

    async def submit(
        self, tenant: str, base_model: str, job: Job, bounds: Bounds = _UNBOUNDED
    ) -> None:
        """Raises NotFound for a run that was never created or has ended, TooMany where bounds say so."""
        await self._enqueue(tenant, base_model, job, "waiting", Result(data=b""), bounds)

    async def submit_failed(
        self,
        tenant: str,
        run_id: str,
        seq_id: int,
        kind: Kind,
        result: Result,
        bounds: Bounds = _UNBOUNDED,
    ) -> None:
        """Fail one seq of a run in its turn, so that the next one does not wait for it."""
        job = Job(
            request_id=f"{run_id}:{seq_id}", run_id=run_id, seq_id=seq_id, kind=kind, body=b""
        )
        await self._enqueue(tenant, "", job, "failed", result, bounds)

    async def _enqueue(
        self, tenant: str, base_model: str, job: Job, state: str, result: Result, bounds: Bounds
    ) -> None:
        head = [job.request_id, job.run_id, job.seq_id, job.kind, tenant, base_model]
        tail = [job.num_tokens, job.body, state, result.content, result.data, RESULT_TTL_MS]
        origin = str(ORIGIN.get()())
        answer = await self._submit(keys=[], args=[*head, *tail, origin, *bounds.rows()])
        if answer == b"norun":
            raise NotFound(f"model_id: there is no training run {job.run_id!r}.")
        if answer == b"ahead":
            raise BadRequest(
                f"seq_id: {job.seq_id} is more than 20000 ahead of the last request that was done."
            )
        _raise_refusal(answer)

    async def submit_sample(
        self,
        tenant: str,
        base_model: str,
        job: Job,
        clone_id: int,
        bounds: Bounds = _UNBOUNDED,
        *,
        width: int = 1,
        refused: Result | None = None,
    ) -> None:
        """Queue it, or record what it was refused with. Raises TooMany where bounds say so."""
        result, state = refused or Result(data=b""), "failed" if refused else "waiting"
        head = [job.request_id, job.run_id, tenant, base_model, clone_id, job.seq_id]
        tail = [job.num_tokens, width, job.body, state, result.content, result.data, RESULT_TTL_MS]
        args = [*head, *tail, str(ORIGIN.get()()), *bounds.rows()]
        _raise_refusal(await self._submit_sample(keys=[], args=args))

    async def refusals(self, request_id: str) -> Refusal | None:
        """Why other requests of the scopes that this one waits in are refused just now."""
        scopes = cast(bytes | None, await self.redis.hget(keys.future(request_id), "scopes"))
        if not scopes:
            return None
        told = await self.redis.mget([keys.paused(scope) for scope in scopes.decode().split()])
        return next((Refusal.parse(row.split(b" ")) for row in told if row), None)

    async def why_waiting(self, request_id: str, run_id: str) -> str | None:
        """What the worker that has it says it waits for."""
        for told in await self.redis.mget(keys.waits(request_id), keys.waits(run_id)):
            if told is not None:
                return cast(bytes, told).decode()
        return None

    async def snapshot_of(self, run_id: str) -> str | None:
        """What the run would be rebuilt from."""
        folder = cast(bytes | None, await self.redis.hget(keys.run(run_id), "snapshot"))
        return folder.decode() or None if folder else None

    async def newest_weights(self, run_id: str) -> str | None:
        """Where the run's inflight samplers find their weights."""
        folder = cast(bytes | None, await self.redis.hget(keys.slot(run_id), "folder"))
        return folder.decode() if folder else None

    async def first_note(self, run_id: str) -> bool:
        """Whether the run's client has not been told yet."""
        return bool(await self.redis.set(keys.noted(run_id), b"1", nx=True, ex=RECORD_SECONDS))

    async def recorded(self, sequence_ids: Sequence[str]) -> dict[str, Recorded]:
        """What is kept of these sequences, for another day from now on."""
        async with self.redis.pipeline(transaction=False) as pipe:
            for sequence_id in sequence_ids:
                pipe.getex(keys.sequence(sequence_id), ex=RECORD_SECONDS)
            found = await pipe.execute()
        return {
            sequence_id: msgspec.msgpack.decode(data, type=Recorded)
            for sequence_id, data in zip(sequence_ids, found, strict=True)
            if data is not None
        }

    async def settled(self, tenant: str, request_id: str, kind: str, result: Result) -> None:
        """A future that has its result at once."""
        state = "failed" if result.failed else "done"
        about = {"tenant": tenant, "kind": kind, "state": state, "content": result.content}
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.hset(keys.future(request_id), mapping=about)
            pipe.set(keys.result(request_id), result.data, px=RESULT_TTL_MS)
            pipe.pexpire(keys.future(request_id), RESULT_TTL_MS)
            await pipe.execute()

    async def cancel(self, request_id: str) -> bool:
        """A sample alone; an op of a run with all that was queued behind it, which builds on it.

        Answers whether it was a sample that had no result yet.
        """
        result = failure("The request was cancelled by the client.")
        if await self._cancel(keys=[], args=[request_id, result.data, RESULT_TTL_MS]):
            return True
        line, _, seq = request_id.rpartition(":")
        if await self.redis.exists(keys.run(line)):
            await self._cancel_line(keys=[], args=[line, seq, result.data, RESULT_TTL_MS, 1])
        return False

    async def cancel_line(self, line: str, result: Result) -> int:
        """Fail all that a run or sampling session still waits for; answers how many that were."""
        args = [line, 0, result.data, RESULT_TTL_MS, 0]
        return cast(int, await self._cancel_line(keys=[], args=args))

    async def end_run(self, run_id: str, result: Result) -> str | None:
        """Forget a run but for its results; what has none gets this one.

        Answers the snapshot that nobody needs any more.
        """
        args = [run_id, result.data, RESULT_TTL_MS]
        snapshot = cast(bytes | None, await self._end_run(keys=[], args=args))
        return snapshot.decode() if snapshot else None

    async def rest(self, run_id: str) -> None:
        """Its home need not keep it in memory."""
        await self.redis.xadd(keys.CTL, {"rest": run_id}, maxlen=10_000)

    # Waiting

    @property
    def draining(self) -> bool:
        """Whether this process is leaving and holds nobody any more."""
        return self._draining

    async def future(self, request_id: str, tenant: str = "") -> FutureState | None:
        """What is known of it now. A result that expired under a live future reads as a failure.

        That its tenant asks is a sign of life of its session.
        """
        seen = await self._look(keys=[], args=[request_id, tenant])

        if seen is None:
            return None
        tenant, kind, state, content = ((value or b"").decode() for value in seen[:4])
        data = seen[4] if len(seen) > 4 else None
        result = None
        if data is not None:
            result = Result(data=data, content=Content(content or "json"), failed=state == "failed")
        elif state in ("done", "failed"):
            result = failure("The result of this request has expired.", "server")
        return FutureState(tenant=tenant, kind=kind, result=result)

    async def wait(self, request_id: str, timeout_seconds: float) -> Result | None:
        """The result, or None if it is still pending when the time is up."""
        async with self._registered(request_id) as event:  # before looking
            if (result := await self._result(request_id)) is None and not self._draining:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout_seconds):
                        await event.wait()
                result = await self._result(request_id)
        return result

    async def wait_completions(
        self, sampling_session_id: str, clone_id: int, cursor: int, timeout_seconds: float
    ) -> list[Completion]:
        """Every completion after the cursor, in order; waits for the first one."""
        key = keys.completions(sampling_session_id, clone_id)
        async with self._registered(sampling_session_id) as event:
            deadline = asyncio.get_running_loop().time() + timeout_seconds
            while True:
                event.clear()  # before looking, as above
                rows = await self._range(key, cursor)
                left = deadline - asyncio.get_running_loop().time()
                if rows or left <= 0 or self._draining:
                    break
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await event.wait()
        return [_completion(row.decode()) for row in rows]

    def stop_holding(self) -> None:
        """Answer every held poll now: this process is leaving, and the client will ask another."""
        self._draining = True
        for events in self._waiting.values():
            for event in events:
                event.set()

    async def forget(self, request_ids: Sequence[str]) -> None:
        """The client has these results for good."""
        if request_ids:
            await self.redis.delete(*(keys.result(request_id) for request_id in request_ids))

    @contextlib.asynccontextmanager
    async def _registered(self, name: str) -> AsyncIterator[asyncio.Event]:
        event = asyncio.Event()
        self._waiting[name].add(event)
        try:
            yield event
        finally:
            self._waiting[name].discard(event)
            if not self._waiting[name]:
                del self._waiting[name]

    async def _result(self, request_id: str) -> Result | None:
        future = await self.future(request_id)
        return future.result if future else None

    # What the other rooms announce

    async def completions(self) -> AsyncIterator[tuple[str, str]]:
        """(request id, kind) of everything that completes from now on."""
        queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._listeners.discard(queue)

    async def models(self) -> list[ModelCard]:
        names = sorted(await self.redis.smembers(keys.MODELS))
        cards = [await self.redis.get(keys.model(name.decode())) for name in names]
        return [msgspec.json.decode(card, type=ModelCard) for card in cards if card]

    async def workers_of(self, base_model: str) -> int:
        names = await self.redis.zrange(keys.workers(base_model), 0, -1)
        if not names:
            return 0
        return cast(int, await self.redis.exists(*(keys.lease(name.decode()) for name in names)))

    async def beat(self, session_id: str) -> None:
        seconds, _ = await self.redis.time()
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.zadd(keys.BEATS, {session_id: seconds})
            pipe.zrem(keys.SILENT, session_id)
            await pipe.execute()

    async def revoke(self, key_id: str) -> None:
        await self.redis.xadd(keys.CTL, {"revoke": key_id}, maxlen=10_000)

    def revoked(self) -> AsyncIterator[str]:
        """Ids of keys, as they are revoked anywhere."""
        return self._noticed("revoke")

    async def finish(self, session_id: str) -> None:
        await self.redis.xadd(keys.CTL, {"finish": session_id}, maxlen=10_000)

    async def change_limits(self, organization_id: str) -> None:
        await self.redis.xadd(keys.CTL, {"limits": organization_id}, maxlen=10_000)

    def changed_limits(self) -> AsyncIterator[str]:
        """Ids of organizations, as their limits are changed anywhere."""
        return self._noticed("limits")

    def finished(self) -> AsyncIterator[str]:
        """Ids of sessions, as they are finished anywhere."""
        return self._noticed("finish")

    async def _noticed(self, what: str) -> AsyncIterator[str]:
        queue: asyncio.Queue[str] = asyncio.Queue()
        self._notices[what].add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._notices[what].discard(queue)

    # The tail

    @property
    def silent_seconds(self) -> float:
        """Since Redis last answered the tail; it does every two seconds, whether anything completed or not."""
        return time.monotonic() - self._heard_at

    async def _follow(self, last: dict[str, str]) -> None:
        while not self._closing:
            try:
                answer = await self.redis.xread(last, block=2000, count=1000)
            except RedisError as error:
                _log.warning("redis_unreachable", error=type(error).__name__)
                await asyncio.sleep(0.5)
                continue
            self._heard_at = time.monotonic()
            for stream, entries in _streams(answer):
                for entry_id, fields in entries:
                    last[stream] = entry_id
                    self._announce(stream, fields)

    def _announce(self, stream: str, fields: dict[str, str]) -> None:
        if stream == keys.CTL:
            for what, name in fields.items():
                for notices in self._notices.get(what, ()):
                    notices.put_nowait(name)
            return
        request_id = fields["request"]
        for name in (request_id, request_id.rsplit(":", 1)[0]):
            for event in self._waiting.get(name, ()):
                event.set()
        for listeners in self._listeners:
            listeners.put_nowait((request_id, fields["kind"]))

    async def _last(self, stream: str) -> str:
        entries = await self.redis.xrevrange(stream, count=1)
        return entries[0][0].decode() if entries else "0"

    async def _range(self, key: str, start: int) -> list[bytes]:
        return cast(list[bytes], await self.redis.lrange(key, start, -1))


def _raise_refusal(answer: Any) -> None:
    if isinstance(answer, list):
        refusal = Refusal.parse(answer)
        raise TooMany(refusal.sentence, refusal.wait_seconds)


def _completion(row: str) -> Completion:
    state, size, request_id = row.split(" ", 2)
    finished = state == "done"
    return Completion(
        state="finished" if finished else "failed",
        request_id=request_id,
        response_payload_uncompressed_size=int(size) if finished else None,
    )


def _streams(answer: Any) -> list[tuple[str, list[tuple[str, dict[str, str]]]]]:
    """redis-py answers a list of pairs under RESP2 and a dict under RESP3."""
    pairs = answer.items() if isinstance(answer, dict) else answer or []
    streams = []
    for name, raw in pairs:
        entries = raw[0] if isinstance(answer, dict) else raw
        decoded = [
            (entry_id.decode(), {k.decode(): v.decode() for k, v in fields.items()})
            for entry_id, fields in entries
        ]
        streams.append((name.decode(), decoded))
    return streams
