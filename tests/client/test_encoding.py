"""Cutting a batch and putting it together again; the official SDK is the other opinion."""

import numpy as np
import pytest
import torch
from tinker.lib.chunked_fwdbwd_helpers import combine_fwd_bwd_output_results
from tinker.types import ForwardBackwardOutput as SdkOutput
from tinsmith import types
from tinsmith.encoding import cut, decode_sample, encode_datum, encode_loss_config, join
from tinsmith.protocol import wire_pb2 as pb
from tinsmith.protocol.tensors import decode_data


def datum(*tokens: int, **inputs: object) -> types.Datum:
    return types.Datum(types.ModelInput.from_ints(tokens), inputs)


def test_a_datum_arrives_as_it_left() -> None:
    sent = datum(
        3,
        4,
        5,
        target_tokens=[4, 5, 6],
        weights=[1, 0, 0.5],
        advantages=torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16),
        own=np.arange(3),
    )
    [got] = decode_data(pb.ForwardBackwardRequest(data=[encode_datum(sent)]))
    assert got.tokens.tolist() == [3, 4, 5]
    assert {name: array.tolist() for name, array in got.inputs.items()} == {
        "target_tokens": [4, 5, 6],
        "weights": [1.0, 0.0, 0.5],
        "advantages": [1.0, 2.0, 3.0],
        "own": [0, 1, 2],
    }
    assert got.inputs["weights"].dtype == np.float32


def test_candidates_keep_their_two_dimensions() -> None:
    [got] = decode_data(
        pb.ForwardBackwardRequest(
            data=[encode_datum(datum(1, 2, target_tokens=[[1, 2, 3], [4, 5, 6]]))]
        )
    )
    assert got.inputs["target_tokens"].tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("inputs", "field"),
    [({"mine": [1, 2]}, "mine"), ({"weights": [[1.0], [1.0, 2.0]]}, "weights")],
)
def test_what_makes_no_tensor_is_told_by_name(inputs: dict[str, object], field: str) -> None:
    with pytest.raises((TypeError, ValueError), match=field):
        datum(1, 2, **inputs)


def test_tokens_that_are_no_tokens_are_told_by_name() -> None:
    with pytest.raises(ValueError, match="model_input"):
        encode_datum(datum(1 << 40))


def test_a_chunk_closes_at_its_count_or_its_bytes() -> None:
    data = [encode_datum(datum(*range(length))) for length in (2, 2, 2, 90, 2)]
    assert [len(chunk) for chunk in cut(data, 2, 1 << 20)] == [2, 2, 1]
    assert [len(chunk) for chunk in cut(data, 9, 60)] == [3, 1, 1]
    assert cut([], 2, 60) == [[]]


def test_joined_chunks_equal_the_official_sdks() -> None:
    metrics = (
        {"loss:sum": 1.5, "m:mean": 2.0, "a:min": 3.0, "b:max": 1.0, "s:slack": 5.0, "x:odd": 1.0},
        {"loss:sum": -0.5, "m:mean": 5.0, "a:min": 2.0, "b:max": 4.0, "s:slack": 1.0},
    )
    rows = ([{}, {}], [{}])
    ours = join([types.ForwardBackwardOutput("r", *one) for one in zip(rows, metrics, strict=True)])
    theirs = combine_fwd_bwd_output_results(
        [
            SdkOutput(loss_fn_output_type="r", loss_fn_outputs=list(row), metrics=metric)
            for row, metric in zip(rows, metrics, strict=True)
        ]
    )
    assert ours.metrics == pytest.approx(theirs.metrics)
    assert len(ours.loss_fn_outputs) == 3


def test_a_loss_setting_is_a_number_or_a_text() -> None:
    config = encode_loss_config({"beta": 0.5, "loss_id": "mine"})
    assert config["beta"].number == 0.5
    assert config["loss_id"].text == "mine"


def test_a_sample_is_read_whole() -> None:
    topk = pb.TopkLogprobs(
        token_ids=np.array([[0, 0], [3, 1]], "<i4").tobytes(),
        logprobs=np.array([[-99999, -99999], [-0.5, -2]], "<f4").tobytes(),
        k=2,
        length=2,
    )
    sequence = pb.SampledSequence(
        stop_reason=pb.STOP_REASON_LENGTH,
        tokens=np.array([7, 8], "<i4").tobytes(),
        logprobs=np.array([-1, -0.5], "<f4").tobytes(),
    )
    message = pb.SampleResponse(
        sequences=[sequence],
        prompt_logprobs=np.array([np.nan, -3], "<f4").tobytes(),
        topk_prompt_logprobs=topk,
    )
    got = decode_sample(message.SerializeToString(), ["s:0"])
    assert got.prompt_logprobs == [None, -3.0]
    assert got.topk_prompt_logprobs == [None, [(3, -0.5), (1, -2.0)]]
    [one] = got.sequences
    assert (one.sequence_id, one.stop_reason, one.tokens) == ("s:0", "length", [7, 8])
    assert one.logprobs == [-1.0, -0.5]
    assert one.topk_logprobs is None
