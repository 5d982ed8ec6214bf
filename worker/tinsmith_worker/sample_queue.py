"""The worker's end of the queue of samples: take, tell tokens, finish. Has never heard of a run's line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import msgspec
import structlog
from redis.exceptions import RedisError
from tinsmith.protocol import keys
from tinsmith.protocol.jobs import DrawnToken, Result
from tinsmith.protocol.origin import NOBODY, Origin
from tinsmith.protocol.provenance import RECORD_SECONDS, Recorded

from tinsmith_worker.link import Link
from tinsmith_worker.usage import sample_usage

_log = structlog.get_logger()
RESULT_TTL_MS = 6 * 3600 * 1000
_TURN_TOKENS = 1024
"""Of sampling, that a tenant may take before it is the next one's turn."""
_TOLD_STEPS, _TOLD_SECONDS = 4096, 3600


@dataclass(frozen=True)
class SampleTicket:
    """A sampling job that this worker has taken."""

    base_model: str
    request_id: str
    body: bytes
    origin: Origin = NOBODY
    submitted_us: int = 0


class SampleQueue:
    def __init__(self, link: Link, worker: str) -> None:
        self._link, self._redis, self._worker = link, link.redis, worker

    def take(self, base_model: str, count: int) -> list[SampleTicket]:
        """The next sampling jobs, tenants taking turns."""
        flat = self._link.run("take_samples", self._worker, base_model, count, _TURN_TOKENS)
        return [
            SampleTicket(base_model, request.decode(), body, told_origin(origin), int(at))
            for request, body, origin, at in zip(*[iter(flat)] * 4, strict=True)
        ]

    def retake(self, base_model: str) -> list[SampleTicket]:
        """Everything that was handed to us and has no result yet, whether or not we heard of it."""
        tickets = []
        for request_id in self._link.members(keys.held(self._worker, base_model)):
            body = cast(bytes | None, self._redis.get(keys.payload(request_id)))
            if body is None:  # cancelled
                self._redis.srem(keys.held(self._worker, base_model), request_id)
            else:
                origin, at = self._redis.hmget(keys.future(request_id), ["origin", "at"])
                ticket = SampleTicket(
                    base_model, request_id, body, told_origin(origin), int(at or 0)
                )
                tickets.append(ticket)
        return tickets

    def rescue(self, base_model: str) -> int:
        """Let what dead workers held wait again; answers how many that were."""
        return cast(int, self._link.run("rescue_samples", base_model))

    def keep_sequences(self, records: Mapping[str, Recorded]) -> None:
        """For a day, by sequence id."""

        def keep() -> None:
            pipe = self._redis.pipeline(transaction=False)
            for name, record in records.items():
                pipe.set(keys.sequence(name), msgspec.msgpack.encode(record), ex=RECORD_SECONDS)
            pipe.execute()

        self._link.patiently(keep)

    def tell_tokens(self, by_process: Mapping[str, Sequence[DrawnToken]]) -> None:
        """To the API processes that stream them. What gets lost comes once more with the result."""
        pipe = self._redis.pipeline(transaction=False)
        for process, drawn in by_process.items():
            data = {"drawn": msgspec.msgpack.encode(drawn)}
            pipe.xadd(keys.tokens(process), data, maxlen=_TOLD_STEPS, approximate=True)
            pipe.expire(keys.tokens(process), _TOLD_SECONDS)
        try:
            pipe.execute()
        except RedisError as error:  # no reason to lose the step's results, which wait for Redis
            _log.warning("tokens_not_told", error=type(error).__name__)

    def done(self, ticket: SampleTicket, result: Result) -> None:
        used = sample_usage(ticket.body, result)
        self._link.tell(
            "sample_done",
            self._worker,
            ticket.base_model,
            ticket.request_id,
            int(result.failed),
            result.content,
            result.data,
            RESULT_TTL_MS,
            used.prefill,
            used.cached,
            used.sampled,
        )


def told_origin(told: bytes | None) -> Origin:
    return Origin.parse((told or b"").decode())
