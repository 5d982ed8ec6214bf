"""A run's last requests as bars on a common scale of time, from the trace that DONE writes."""

from collections.abc import Sequence
from dataclasses import dataclass

from tinsmith.protocol import keys
from tinsmith.protocol.paths import session_of

from tinsmith_server.bus import Bus

_LOOKED_THROUGH = 600
MOST = 120
_WIDTH, _LANE = 1000.0, 16.0


@dataclass(frozen=True)
class Op:
    kind: str
    request_id: str
    submitted_us: int
    ended_us: int
    state: str
    tokens: int

    @property
    def ms(self) -> float:
        return (self.ended_us - self.submitted_us) / 1000


@dataclass(frozen=True)
class Bar:
    op: Op
    x: float
    width: float
    y: float


@dataclass(frozen=True)
class Timeline:
    """Bars on a sheet of this size; a lane for each kind."""

    ops: Sequence[Op]
    bars: Sequence[Bar]
    kinds: Sequence[str]
    width: float
    height: float
    seconds: float


async def of_run(bus: Bus, run_id: str) -> Timeline:
    lines = await bus.redis.lrange(keys.trace(session_of(run_id)), -_LOOKED_THROUGH, -1)
    ops = [_op(line.decode()) for line in lines]
    mine = [one for one in ops if one.request_id.rpartition(":")[0] == run_id][-MOST:]
    return drawn(mine)


def drawn(ops: Sequence[Op]) -> Timeline:
    kinds = list(dict.fromkeys(one.kind for one in ops))
    begin = min((one.submitted_us for one in ops), default=0)
    end = max((one.ended_us for one in ops), default=0)
    scale = _WIDTH / max(1, end - begin)
    bars = [
        Bar(
            one,
            round((one.submitted_us - begin) * scale, 2),
            round(max(1.5, (one.ended_us - one.submitted_us) * scale), 2),
            kinds.index(one.kind) * _LANE,
        )
        for one in ops
    ]
    return Timeline(ops, bars, kinds, _WIDTH, len(kinds) * _LANE, (end - begin) / 1e6)


def _op(line: str) -> Op:
    kind, request_id, submitted, ended, state, tokens = line.split(" ")
    return Op(kind, request_id, int(submitted), max(int(submitted), int(ended)), state, int(tokens))
