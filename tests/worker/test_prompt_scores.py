"""What a prompt's scores are, whoever else is in the pass: held to transformers' own logits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tinsmith_worker.engine import prompt_scores
from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.base_model import load as load_model
from tinsmith_worker.engine.sampler import Finished, Sampler
from tinsmith_worker.engine.values import InvalidInput, SampleRequest, TargetCells
from transformers import AutoModelForCausalLM

from tests.worker.tiny_models import VOCAB, save

PROMPTS = [[5, 9, 14], list(range(3, 60)), [7], [8, 8, 41, 2, 2]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def model(folder: Path) -> BaseModel:
    return load_model(str(folder), name="tiny")


def request(name: str, prompt: list[int], **more: object) -> SampleRequest:
    defaults: dict[str, object] = {
        "adapter": None,
        "num_samples": 1,
        "max_tokens": 1,
        "temperature": 0.5,  # of no consequence to the scores of a prompt
        "top_k": -1,
        "top_p": 1.0,
        "seed": 5,
        "stop": None,
    }
    return SampleRequest(request_id=name, prompt=prompt, **(defaults | more))  # type: ignore[arg-type]


def run(model: BaseModel, requests: list[SampleRequest]) -> dict[str, Finished]:
    sampler = Sampler(model, max_slots=64, max_pass_tokens=4096)
    for one in requests:
        sampler.add(one)
    found: dict[str, Finished] = {}
    while sampler.busy:
        found |= {one.request_id: one for one in sampler.step()}
    return found


def reference(folder: Path, prompt: list[int]) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(torch.tensor([prompt])).logits[0].log_softmax(-1).numpy()


@pytest.mark.parametrize("head_rows", [256, 7], ids=["one chunk", "many chunks"])
def test_scores_do_not_mix_between_prompts(
    model: BaseModel, folder: Path, head_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_scores, "HEAD_ROWS", head_rows)
    adapter = Adapter.create(model, rank=2, seed=1)  # B = 0: it changes no score
    random = np.random.default_rng(0)
    asked, cells = [], {}
    for index, prompt in enumerate(PROMPTS):
        rows = np.repeat(np.arange(len(prompt) - 1), 3)
        cells[index] = TargetCells(rows, random.integers(-1, VOCAB, rows.size))
        asked.append(
            request(
                str(index),
                prompt,
                adapter=adapter if index % 2 else None,
                prompt_logprobs=True,
                topk_prompt_logprobs=index + 1,
                targets=cells[index],
            )
        )
    found = run(model, [request("unscored", [3, 4, 5]), *asked])
    assert found["unscored"].scores.prompt_logprobs is None
    for index, prompt in enumerate(PROMPTS):
        scores, one, cell = reference(folder, prompt), found[str(index)], cells[index]
        assert one.scores.prompt_logprobs is not None
        assert one.scores.topk_prompt is not None
        assert np.isnan(one.scores.prompt_logprobs[0])
        own = scores[np.arange(len(prompt) - 1), prompt[1:]]
        np.testing.assert_allclose(one.scores.prompt_logprobs[1:], own, atol=1e-5)
        best = np.sort(scores[:-1], axis=1)[:, ::-1][:, : index + 1]
        np.testing.assert_allclose(one.scores.topk_prompt.logprobs[1:], best, atol=1e-5)
        picked = np.take_along_axis(scores[:-1], one.scores.topk_prompt.token_ids[1:], axis=1)
        np.testing.assert_allclose(picked, best, atol=1e-5)
        expected = scores[cell.rows, np.maximum(cell.tokens, 0)] * (cell.tokens >= 0)
        np.testing.assert_allclose(one.scores.target_logprobs, expected, atol=1e-5)


def test_the_last_n_are_scored_and_no_more(model: BaseModel) -> None:
    prompt = PROMPTS[1]
    whole = run(model, [request("a", prompt, prompt_logprobs=True)])["a"].scores.prompt_logprobs
    some = run(model, [request("a", prompt, prompt_logprobs=True, prompt_logprobs_last_n=4)])[
        "a"
    ].scores.prompt_logprobs
    assert whole is not None
    assert some is not None
    assert np.isnan(some[:-4]).all()
    np.testing.assert_allclose(some[-4:], whole[-4:], atol=1e-6)


@pytest.mark.parametrize("token", [-2, VOCAB])
def test_a_target_outside_the_vocabulary_is_refused_by_name(model: BaseModel, token: int) -> None:
    cells = TargetCells(np.array([0]), np.array([token]))
    with pytest.raises(InvalidInput, match="target_prompt_logprobs"):
        run(model, [request("a", [1, 2], targets=cells)])


def test_alternatives_follow_the_model_at_the_requests_temperature(
    model: BaseModel, folder: Path
) -> None:
    prompt, temperature, k = [5, 9, 14, 3], 0.5, 1024
    asked = request("a", prompt, prompt_alt_tokens_k=k, temperature=temperature)
    drawn = run(model, [request("b", [7, 7], prompt_alt_tokens_k=2), asked])[
        "a"
    ].scores.alternatives
    assert drawn is not None
    assert drawn.token_ids.shape == (3, k)
    scaled = torch.from_numpy(reference(folder, prompt)[:-1]) / temperature
    expected = scaled.log_softmax(-1).numpy()
    picked = np.take_along_axis(expected, drawn.token_ids.astype(np.int64), axis=1)
    np.testing.assert_allclose(drawn.logprobs, picked, atol=1e-4)
    for row in range(3):
        counts = np.bincount(drawn.token_ids[row], minlength=VOCAB) / k
        assert np.abs(counts - np.exp(expected[row])).max() < 5 * 0.5 / k**0.5


def test_alternatives_do_not_depend_on_company_or_on_how_a_prompt_is_read(model: BaseModel) -> None:
    prompt = PROMPTS[1]
    asked = request("a", prompt, prompt_alt_tokens_k=3)
    alone = run(model, [asked])["a"].scores.alternatives
    together = run(model, [request("b", [4, 4, 4]), asked])["a"].scores.alternatives
    in_parts = Sampler(model, max_slots=4, max_pass_tokens=9)
    in_parts.add(asked)
    parts = next(one for _ in range(12) for one in in_parts.step()).scores.alternatives
    assert alone is not None
    for other in (together, parts):
        assert other is not None
        assert np.array_equal(alone.token_ids, other.token_ids)


def test_too_many_alternatives_are_refused_by_name(model: BaseModel) -> None:
    with pytest.raises(InvalidInput, match="prompt_alt_tokens_k"):
        run(model, [request("a", [1, 2], prompt_alt_tokens_k=-1)])
