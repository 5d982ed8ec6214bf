"""A session's trace, opened with Perfetto's own messages."""

import urllib.error
import urllib.request

import pytest
import tinker
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as perfetto

from tests.contract.conftest import BASE_MODEL, Service
from tests.contract.test_clients import TOKENS, datum, train


def test_every_request_is_a_slice_on_its_runs_track(service: Service) -> None:
    with tinker.ServiceClient(base_url=service.url, api_key=service.api_key) as client:
        run = client.create_lora_training_client(BASE_MODEL, rank=2).result(60)
        train(tinker, run, 2)
        sampler = run.save_weights_and_get_sampling_client().result(60)
        params = tinker.SamplingParams(max_tokens=2)
        prompt = tinker.ModelInput.from_ints(TOKENS)
        for answer in [sampler.sample(prompt, 1, params) for _ in range(3)]:
            answer.result(60)
        with pytest.raises(tinker.RequestFailedError):
            run.forward([datum(tinker)], "no_such_loss").result(60)
        session_id = str(client.holder.get_session_id())
    rest = tinker.RestClient(base_url=service.url, api_key=service.api_key)
    exported = rest.export_session_trace(session_id).result(30)
    url = str(getattr(exported, "url", exported))
    with urllib.request.urlopen(url, timeout=30) as answer:
        data = answer.read()
    slices = _slices(perfetto.Trace.FromString(data))
    names = [name for _, name, _, _ in slices]
    assert names.count("forward_backward") == names.count("optim_step") == 2
    assert names.count("sample") == 3
    assert names.count("create_model") == names.count("save_weights_for_sampler") == 1
    tracks = {track for track, _, _, _ in slices}
    assert run.model_id in tracks
    assert any(":sample:" in track for track in tracks)
    assert all(begin < end for _, _, begin, end in slices)
    other = tinker.RestClient(base_url=service.url, api_key=service.other_key)
    with pytest.raises(tinker.NotFoundError):
        other.export_session_trace(session_id).result(30)
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(url.replace(session_id, "sess-another"), timeout=30)


def _slices(trace: perfetto.Trace) -> list[tuple[str, str, int, int]]:
    """(track, name, begin, end), from events that must come in pairs on each lane."""
    tracks, open_, found = {}, {}, []
    for packet in trace.packet:
        if packet.HasField("track_descriptor"):
            tracks[packet.track_descriptor.uuid] = packet.track_descriptor.name
            continue
        event = packet.track_event
        if event.type == perfetto.TrackEvent.TYPE_SLICE_BEGIN:
            assert event.track_uuid not in open_
            open_[event.track_uuid] = (event.name, packet.timestamp)
        else:
            name, begin = open_.pop(event.track_uuid)
            found.append((tracks[event.track_uuid], name, begin, packet.timestamp))
    assert not open_
    return found
