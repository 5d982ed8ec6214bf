"""Our hand-written trace, read back with Perfetto's own messages."""

from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as perfetto
from tinsmith_server.traces.perfetto import Slice, trace


def test_overlapping_slices_stand_on_lanes_of_one_name() -> None:
    slices = [
        Slice("run", "b", 5, 30, {"tokens": 300, "state": "done"}),
        Slice("run", "a", 0, 10),
        Slice("run", "c", 12, 20),
        Slice("other", "d", 1, 2),
    ]
    read = perfetto.Trace.FromString(trace("Title é", slices))
    described = [p.track_descriptor for p in read.packet if p.HasField("track_descriptor")]
    assert described[0].process.process_name == "Title é"
    assert sorted(track.name for track in described[1:]) == ["other", "run", "run"]
    assert {track.parent_uuid for track in described[1:]} == {described[0].uuid}
    lanes = {
        p.track_event.name: p.track_event.track_uuid
        for p in read.packet
        if p.track_event.type == perfetto.TrackEvent.TYPE_SLICE_BEGIN
    }
    assert lanes["a"] == lanes["c"] != lanes["b"]  # c begins after a has ended
    [b] = [p for p in read.packet if p.track_event.name == "b"]
    assert b.timestamp == 5000
    notes = {
        note.name: note.int_value or note.string_value for note in b.track_event.debug_annotations
    }
    assert notes == {"tokens": 300, "state": "done"}
