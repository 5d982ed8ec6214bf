"""Who shares a step with whom changes no token, whatever the pool, the budget or the company."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.base_model import BaseModel, load
from tinsmith_worker.engine.kv_pool import BLOCK
from tinsmith_worker.engine.sampler import Finished, Sampler
from tinsmith_worker.engine.values import InvalidInput, SampleRequest, TargetCells

from tests.worker.tiny_models import VOCAB, save


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    made = load(str(save("llama", tmp_path_factory.mktemp("llama"))), name="tiny")
    made.max_context_length = 1024  # the positions are rotary: any length will do
    return made


def prompt_of(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(2, VOCAB, length).tolist()


def adapter_of(model: BaseModel, seed: int) -> Adapter:
    made = Adapter.create(model, rank=2, seed=seed)
    made.row += 0.1 * torch.randn(made.row.shape, generator=torch.Generator().manual_seed(seed))
    made.changed()
    return made


def request(name: str, prompt: list[int], **more: object) -> SampleRequest:
    defaults: dict[str, object] = {
        "adapter": None,
        "num_samples": 1,
        "max_tokens": 8,
        "temperature": 1.0,
        "top_k": -1,
        "top_p": 1.0,
        "seed": 5,
        "stop": [],
    }
    return SampleRequest(request_id=name, prompt=prompt, **(defaults | more))  # type: ignore[arg-type]


def sampler_of(model: BaseModel, slots: int = 16, tokens: int = 512, blocks: int = 512) -> Sampler:
    return Sampler(model, max_slots=slots, max_pass_tokens=tokens, max_blocks=blocks)


def drain(sampler: Sampler, most_steps: int = 5000) -> dict[str, Finished]:
    found: dict[str, Finished] = {}
    for _ in range(most_steps):
        if not sampler.busy:
            return found
        found |= {one.request_id: one for one in sampler.step()}
    raise AssertionError("the sampler does not come to an end")


def run(sampler: Sampler, requests: Sequence[SampleRequest]) -> dict[str, Finished]:
    for one in requests:
        sampler.add(one)
    return drain(sampler)


def tokens_of(found: dict[str, Finished]) -> dict[str, list[list[int]]]:
    assert all(one.error is None for one in found.values())
    return {name: [each.tokens for each in one.sequences] for name, one in found.items()}


def same(left: dict[str, Finished], right: dict[str, Finished]) -> None:
    assert tokens_of(left) == tokens_of(right)
    for name, one in left.items():
        for a, b in zip(one.sequences, right[name].sequences, strict=True):
            assert a.logprobs == b.logprobs


def held_by_prefixes(sampler: Sampler) -> int:
    return len({node.block for node in sampler._prefixes._nodes})


MIXED = [
    request("short", prompt_of(1, 3), num_samples=3),
    request("long", prompt_of(2, 300), num_samples=2, max_tokens=20),
    request("edge", prompt_of(3, BLOCK), max_tokens=5),
    request("almost", prompt_of(4, BLOCK - 2), num_samples=4, max_tokens=10),
    request("one", prompt_of(5, 1), temperature=0.0),
]


# Pools, passes, slots


@pytest.mark.parametrize("tokens", [1, 7, 64, BLOCK])
def test_a_prompt_read_in_parts_gives_the_same_tokens(model: BaseModel, tokens: int) -> None:
    prompt = request("a", prompt_of(2, 140), max_tokens=3)
    whole = run(sampler_of(model), [prompt])
    same(run(sampler_of(model, tokens=tokens), [prompt]), whole)


@pytest.mark.parametrize("blocks", [4, 5, 8])
def test_a_small_pool_gives_the_tokens_of_a_large_one(model: BaseModel, blocks: int) -> None:
    large = run(sampler_of(model), MIXED)
    small = sampler_of(model, blocks=blocks)
    same(run(small, MIXED), large)
    assert small._pool.blocks_in_use == held_by_prefixes(small)


def test_many_newcomers_of_one_step_do_not_count_on_the_same_blocks(model: BaseModel) -> None:
    requests = [request(str(seed), prompt_of(seed, 100)) for seed in range(7)]
    alone = run(sampler_of(model), requests)
    same(run(sampler_of(model, blocks=4), requests), alone)


@pytest.mark.parametrize("blocks", [4, 5, 6, 7])
def test_twins_that_all_cross_into_a_new_block_beside_a_newcomer(
    model: BaseModel, blocks: int
) -> None:
    twins = request("twins", prompt_of(1, BLOCK - 3), num_samples=3, max_tokens=6)
    late = request("late", prompt_of(2, 20))
    apart = run(sampler_of(model), [twins]) | run(sampler_of(model), [late])
    for steps in range(1, 6):
        sampler = sampler_of(model, blocks=blocks)
        sampler.add(twins)
        found: dict[str, Finished] = {}
        for _ in range(steps):
            found |= {one.request_id: one for one in sampler.step()}
        sampler.add(late)
        same(found | drain(sampler), apart)


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_more_samples_than_slots(model: BaseModel, slots: int) -> None:
    same(run(sampler_of(model, slots=slots), MIXED), run(sampler_of(model), MIXED))


def test_what_fits_in_no_pool_is_refused(model: BaseModel) -> None:
    sampler = sampler_of(model, blocks=4)
    with pytest.raises(InvalidInput, match="prompt: 390 tokens and 8 to sample"):
        sampler.add(request("a", prompt_of(1, 390)))
    assert not sampler.busy


def test_what_just_fits_runs_alone_in_the_pool_even_after_it_was_remembered(
    model: BaseModel,
) -> None:
    fits = request("a", prompt_of(1, 300), max_tokens=3 * BLOCK - 300)
    expected = run(sampler_of(model), [fits])
    sampler = sampler_of(model, blocks=4)
    for _ in range(3):
        same(run(sampler, [fits]), expected)


def test_what_is_remembered_serves_even_when_the_pool_is_nearly_full(model: BaseModel) -> None:
    prompt = prompt_of(1, 2 * BLOCK)
    sampler = sampler_of(model, blocks=4)
    run(sampler, [request("a", prompt, max_tokens=1)])
    found = run(sampler, [request("a", [*prompt, 5, 6], max_tokens=4)])
    assert found["a"].prompt_cache_hit_tokens == 2 * BLOCK


def test_who_finds_no_place_costs_nobody_what_is_remembered(model: BaseModel) -> None:
    sampler, prompt = sampler_of(model, blocks=8), prompt_of(1, 2 * BLOCK)
    run(sampler, [request("a", prompt, max_tokens=1)])
    sampler.add(request("runs", prompt_of(2, 400), max_tokens=30))
    sampler.add(request("waits", prompt_of(3, 600)))
    for _ in range(3):
        sampler.step()
    assert sampler._pool.blocks_in_use == 2 + 4
    kept = sampler._prefixes.find(None, [*prompt, 5], 2 * BLOCK)
    assert kept.length == 2 * BLOCK
    kept.release()
    drain(sampler)


# Cancelling


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 6])
def test_what_is_cancelled_gives_its_blocks_and_slots_back(model: BaseModel, steps: int) -> None:
    sampler = sampler_of(model, slots=4, tokens=64, blocks=12)
    stays = request("stays", prompt_of(9, 30), max_tokens=30)
    expected = run(sampler_of(model), [stays])
    for one in [
        request("goes", prompt_of(1, 150), num_samples=4, max_tokens=50),
        stays,
        request("waits", prompt_of(2, 90), num_samples=4),
    ]:
        sampler.add(one)
    found: dict[str, Finished] = {}
    for _ in range(steps):
        found |= {one.request_id: one for one in sampler.step()}
    sampler.cancel("goes")
    sampler.cancel("waits")
    sampler.cancel("never heard of")
    same(found | drain(sampler), expected)
    assert sampler._pool.blocks_in_use == held_by_prefixes(sampler)
    assert not sampler._running


# Prefixes


def test_a_conversation_is_not_read_again(model: BaseModel) -> None:
    sampler = sampler_of(model)
    first = run(sampler, [request("a", prompt_of(1, 150))])["a"]
    assert first.prompt_cache_hit_tokens == 0
    said = first.sequences[0].tokens
    turn = [*prompt_of(1, 150), *said, *prompt_of(2, 40)]
    second = run(sampler, [request("b", turn)])
    # The last token that was said was never read.
    assert second["b"].prompt_cache_hit_tokens == 150 + len(said) - 1
    same(second, run(sampler_of(model), [request("b", turn)]))


def test_the_same_prompt_again_is_read_but_for_its_last_token(model: BaseModel) -> None:
    sampler = sampler_of(model)
    for length, expected in ((BLOCK + 20, BLOCK + 19), (2 * BLOCK, 2 * BLOCK - 1), (10, 0)):
        one = request("a", prompt_of(length, length), num_samples=2)
        first, second = run(sampler, [one]), run(sampler, [one])
        same(first, second)
        assert second["a"].prompt_cache_hit_tokens == expected


def test_scored_positions_are_computed_not_remembered(model: BaseModel) -> None:
    sampler, prompt = sampler_of(model), prompt_of(1, 200)
    scored = request("a", prompt, prompt_logprobs=True, prompt_logprobs_last_n=10)
    fresh = run(sampler_of(model), [scored])["a"]
    run(sampler, [request("b", prompt)])
    again = run(sampler, [scored])["a"]
    assert again.prompt_cache_hit_tokens == 200 - 11
    assert fresh.scores.prompt_logprobs is not None
    np.testing.assert_array_equal(again.scores.prompt_logprobs, fresh.scores.prompt_logprobs)


def test_adapters_never_share_what_was_read(model: BaseModel) -> None:
    prompt = prompt_of(1, 150)
    owners = [None, adapter_of(model, 1), adapter_of(model, 2)]
    alone = [run(sampler_of(model), [request("a", prompt, adapter=one)]) for one in owners]
    assert len({str(tokens_of(one)) for one in alone}) == 3
    sampler = sampler_of(model)
    for _ in range(2):
        for owner, expected in zip(owners, alone, strict=True):
            found = run(sampler, [request("a", prompt, adapter=owner)])
            same(found, expected)
    assert found["a"].prompt_cache_hit_tokens == 149


def test_a_forgotten_adapter_leaves_nothing_even_if_it_was_sampling(model: BaseModel) -> None:
    sampler, adapter = sampler_of(model), adapter_of(model, 1)
    one = request("a", prompt_of(1, 150), adapter=adapter, num_samples=2)
    expected = run(sampler_of(model), [one])
    run(sampler, [one])
    sampler.add(one)
    sampler.step()
    sampler.forget(adapter)
    same(drain(sampler), expected)
    assert sampler._pool.blocks_in_use == 0


def test_samples_part_without_disturbing_one_another(model: BaseModel) -> None:
    """Each continues in its own last block, and the remembered prompt's stays what it was."""
    one = request("a", prompt_of(1, 100), num_samples=4, max_tokens=40)
    sampler = sampler_of(model)
    first = run(sampler, [one])
    assert len({tuple(each.tokens) for each in first["a"].sequences}) == 4
    same(run(sampler, [one]), first)
    for sample in first["a"].sequences:
        turn = [*one.prompt, *sample.tokens, 7]
        same(run(sampler, [request("b", turn)]), run(sampler_of(model), [request("b", turn)]))


# Company


def test_company_changes_not_one_bit_of_a_sample(model: BaseModel) -> None:
    adapters = [None, adapter_of(model, 1), adapter_of(model, 2)]
    requests = [
        request(
            str(index),
            prompt_of(index, 5 + 37 * index),
            adapter=adapters[index % 3],
            num_samples=1 + index % 3,
            temperature=(0.0, 0.7, 1.0)[index % 3],
            top_p=(1.0, 0.8)[index % 2],
            max_tokens=4 + index,
            seed=index,
        )
        for index in range(8)
    ]
    alone: dict[str, Finished] = {}
    for one in requests:
        alone |= run(sampler_of(model), [one])
    same(run(sampler_of(model), requests), alone)
    same(run(sampler_of(model, slots=3, tokens=50, blocks=6), requests[::-1]), alone)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_fails_alone_and_says_so(
    model: BaseModel, value: float
) -> None:
    broken = adapter_of(model, 1)
    broken.row[::7] = value
    healthy = request("healthy", prompt_of(2, 30), num_samples=2)
    expected = run(sampler_of(model), [healthy])
    sick = request("sick", prompt_of(1, 30), adapter=broken, num_samples=3, top_k=5)
    sampler = sampler_of(model, blocks=6)
    found = run(sampler, [sick, healthy])
    assert found["sick"].error is not None
    assert "not finite" in found["sick"].error
    assert found["sick"].sequences == []
    same({"healthy": found["healthy"]}, expected)
    sampler.forget(broken)
    same(run(sampler, [healthy]), expected)  # perhaps in blocks that the other had
    assert sampler._pool.blocks_in_use == held_by_prefixes(sampler)


@pytest.mark.parametrize("where", ["hidden", "logits"])
def test_running_out_of_memory_fails_those_in_the_pass_and_no_more(
    model: BaseModel, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = sampler_of(model, slots=2)
    real, left = getattr(model, where), [1]

    def short_of_memory(*given: object) -> object:
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")
        return real(*given)

    monkeypatch.setattr(model, where, short_of_memory)
    found = run(
        sampler, [request("in", prompt_of(1, 150), num_samples=2), request("next", prompt_of(2, 9))]
    )
    assert found["in"].error is not None
    assert "memory" in found["in"].error
    assert found["next"].error is None
    assert sampler._pool.blocks_in_use == held_by_prefixes(sampler)


# Stops and what is told of each token


def test_stops(model: BaseModel) -> None:
    prompt = prompt_of(1, 12)
    [free] = run(sampler_of(model), [request("a", prompt, max_tokens=30)])["a"].sequences
    assert (len(free.tokens), free.stop_reason) == (30, "length")
    stop = free.tokens[9]
    first = free.tokens.index(stop)
    [stopped] = run(sampler_of(model), [request("a", prompt, max_tokens=30, stop=[stop])])[
        "a"
    ].sequences
    assert stopped.tokens == free.tokens[: first + 1]
    assert stopped.logprobs == free.logprobs[: first + 1]
    assert stopped.stop_reason == "stop"
    [at_once] = run(sampler_of(model), [request("a", prompt, max_tokens=1, stop=[free.tokens[0]])])[
        "a"
    ].sequences
    assert (at_once.tokens, at_once.stop_reason) == (free.tokens[:1], "stop")


def test_stop_none_ends_at_any_end_token(model: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = prompt_of(1, 12)
    [free] = run(sampler_of(model), [request("a", prompt, max_tokens=30)])["a"].sequences
    monkeypatch.setattr(model, "eos_token_ids", frozenset({free.tokens[4], 1}))
    [ended] = run(sampler_of(model), [request("a", prompt, max_tokens=30, stop=None)])[
        "a"
    ].sequences
    assert ended.tokens == free.tokens[: free.tokens.index(free.tokens[4]) + 1]
    assert ended.stop_reason == "stop"


def test_a_stop_string_may_straddle_tokens(
    model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Letters:
        """Token 17 is `<17>`."""

        def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
            return "".join(f"<{token}>" for token in tokens)

    monkeypatch.setattr(model, "tokenizer", Letters())
    prompt = prompt_of(1, 12)
    [free] = run(sampler_of(model), [request("a", prompt, max_tokens=30)])["a"].sequences
    pair = free.tokens[6:8]
    stop = f"{pair[0]}><{pair[1]}>"
    [ended] = run(sampler_of(model), [request("a", prompt, max_tokens=30, stop=["zz", stop])])[
        "a"
    ].sequences
    assert ended.stop_reason == "stop"
    assert ended.tokens == free.tokens[: len(ended.tokens)]
    assert ended.tokens[-2:] == pair
    assert len(ended.tokens) <= 8


def test_the_context_bounds_a_sample(model: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "max_context_length", 40)
    for asked in (None, 1000):
        [one] = run(sampler_of(model), [request("a", prompt_of(1, 33), max_tokens=asked)])[
            "a"
        ].sequences
        assert (len(one.tokens), one.stop_reason) == (7, "length")


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_the_likeliest_tokens_beside_each_sampled_one(model: BaseModel, temperature: float) -> None:
    """Under the temperature of the sample, so that they can be compared with it."""
    [one] = run(
        sampler_of(model),
        [request("a", prompt_of(1, 12), topk_sample_logprobs=VOCAB, temperature=temperature)],
    )["a"].sequences
    assert one.topk is not None
    assert one.topk.logprobs.shape == (8, VOCAB)
    np.testing.assert_allclose(np.exp(one.topk.logprobs).sum(1), 1.0, atol=1e-4)
    assert (np.diff(one.topk.logprobs, axis=1) <= 0).all()
    for row, (token, logprob) in enumerate(zip(one.tokens, one.logprobs, strict=True)):
        [place] = np.flatnonzero(one.topk.token_ids[row] == token)
        assert one.topk.logprobs[row, place] == pytest.approx(logprob, abs=1e-6)
        assert temperature > 0 or place == 0


# Prompt scores


@pytest.mark.parametrize("tokens", [1, 3, 50, 129])
@pytest.mark.parametrize("blocks", [3, 64])
def test_scores_across_the_parts_of_a_prompt(model: BaseModel, tokens: int, blocks: int) -> None:
    prompt = prompt_of(1, 131)
    random = np.random.default_rng(0)
    rows = np.sort(random.integers(0, 130, 60))
    asked = request(
        "a",
        prompt,
        max_tokens=1,
        prompt_logprobs=True,
        topk_prompt_logprobs=3,
        targets=TargetCells(rows, random.integers(-1, VOCAB, 60)),
    )
    whole = run(sampler_of(model), [asked])["a"]
    found = run(sampler_of(model, tokens=tokens, blocks=blocks), [asked])["a"]
    for part in ("prompt_logprobs", "target_logprobs"):
        np.testing.assert_array_equal(getattr(found.scores, part), getattr(whole.scores, part))
    assert whole.scores.topk_prompt is not None
    assert found.scores.topk_prompt is not None
    np.testing.assert_array_equal(
        found.scores.topk_prompt.token_ids, whole.scores.topk_prompt.token_ids
    )
    assert np.isfinite(whole.scores.prompt_logprobs[1:]).all()  # type: ignore[index]
    last = request("a", prompt, max_tokens=1, prompt_logprobs=True, prompt_logprobs_last_n=7)
    some = run(sampler_of(model, tokens=tokens, blocks=blocks), [last])["a"].scores.prompt_logprobs
    assert some is not None
    assert np.isnan(some[:-7]).all()
    np.testing.assert_array_equal(some[-7:], whole.scores.prompt_logprobs[-7:])  # type: ignore[index]


def test_a_scored_prompt_that_lost_its_place_is_scored_whole(model: BaseModel) -> None:
    scored = request("scored", prompt_of(1, 300), prompt_logprobs=True, max_tokens=2)
    expected = run(sampler_of(model), [scored])["scored"].scores.prompt_logprobs
    sampler = sampler_of(model, tokens=40, blocks=4)
    sampler.add(request("first", prompt_of(2, 110), max_tokens=60))
    sampler.step()
    sampler.add(scored)
    found = drain(sampler)
    np.testing.assert_array_equal(found["scored"].scores.prompt_logprobs, expected)
