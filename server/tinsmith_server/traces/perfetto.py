"""Slices on tracks as a Perfetto trace: the few messages of its protobuf that this takes, by hand.

Numbers are those of perfetto/protos/perfetto/trace/*.proto. Slices of one track must nest, and requests
only overlap: so a track has as many lanes of the same name as ran at once, which the viewer draws as one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush

_BEGIN, _END = 1, 2
_SEQUENCE = 1


@dataclass(frozen=True)
class Slice:
    track: str
    name: str
    begin_us: int
    end_us: int
    notes: dict[str, str | int] = field(default_factory=dict)


def trace(title: str, slices: Iterable[Slice]) -> bytes:
    """One process named by the title, a track for each name, each slice with its notes."""
    return b"".join(_packets(title, sorted(slices, key=lambda one: (one.begin_us, one.end_us))))


def _packets(title: str, slices: list[Slice]) -> Iterator[bytes]:
    process = 1
    yield _packet(_bytes(60, _number(1, process) + _bytes(3, _number(1, 1) + _text(6, title))))
    lanes = _Lanes()
    for one in slices:
        lane, is_new = lanes.take(one)
        if is_new:
            described = _number(1, lane) + _text(2, one.track) + _number(5, process)
            yield _packet(_bytes(60, described))
        notes = b"".join(_note(name, value) for name, value in one.notes.items())
        begin = _number(9, _BEGIN) + _number(11, lane) + _text(23, one.name) + notes
        yield _packet(_number(8, one.begin_us * 1000) + _bytes(11, begin))
        yield _packet(
            _number(8, one.end_us * 1000) + _bytes(11, _number(9, _END) + _number(11, lane))
        )


class _Lanes:
    """Lane numbers of each track; one is free again when its slice has ended."""

    def __init__(self) -> None:
        self._busy: dict[str, list[tuple[int, int]]] = {}
        self._last = 1

    def take(self, one: Slice) -> tuple[int, bool]:
        busy = self._busy.setdefault(one.track, [])
        if busy and busy[0][0] <= one.begin_us:
            _, lane = heappop(busy)
            is_new = False
        else:
            self._last += 1
            lane, is_new = self._last, True
        heappush(busy, (one.end_us, lane))
        return lane, is_new


def _packet(body: bytes) -> bytes:
    return _bytes(1, body + _number(10, _SEQUENCE))


def _note(name: str, value: str | int) -> bytes:
    written = _number(4, value) if isinstance(value, int) else _text(6, value)
    return _bytes(4, _text(10, name) + written)


# The wire format of protobuf: a field's number and type, then a varint, or a length and bytes.


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _text(number: int, value: str) -> bytes:
    return _bytes(number, value.encode())


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
