"""The harness keeps its books right: `pytest benchmarks`."""

import json
from pathlib import Path

import pytest

from benchmarks.harness import Comparison, Row, Timing, Variant, interleave, record
from benchmarks.workloads import even_sft, ragged_sft, rl_group, sampling, tenants


def test_the_ratio_is_the_median_of_the_rounds_ratios_not_of_the_medians():
    ours = [Timing(seconds, 0.0) for seconds in (1.0, 2.0, 4.0)]
    other = [Timing(seconds, 0.0) for seconds in (3.0, 20.0, 4.0)]
    comparison = Comparison({"ours": ours, "other": other})
    assert comparison.ratio("ours", "other") == 3.0  # of 3, 10 and 1; the medians say 2
    assert comparison.cpu_seconds("other") == 4.0


def test_each_round_begins_with_another_variant_after_its_untimed_set_up():
    seen: list[str] = []
    variants = [
        Variant(
            name, run=lambda n=name: seen.append(n), set_up=lambda n=name: seen.append(f"({n})")
        )
        for name in ("a", "b", "c")
    ]
    interleave(variants, rounds=3, warm_up=False)
    assert "".join(seen) == "(a)a(b)b(c)c" + "(b)b(c)c(a)a" + "(c)c(a)a(b)b"


def test_two_variants_of_one_name_are_refused():
    with pytest.raises(ValueError, match="share a name"):
        interleave([Variant("a", run=int), Variant("a", run=int)])


def test_a_row_replaces_its_namesake_and_leaves_the_others(tmp_path: Path):
    path = tmp_path / "results" / "latest.json"
    record([Row("b", 1, 2, "ms", 2.0, 1.5), Row("a", 1, 3, "ms", 3.0)], path)
    record([Row("b", 1, 1.23456, "ms", 1.23456, 1.5)], path)
    rows = json.loads(path.read_text())
    assert [(row["name"], row["ratio"], row["floor"]) for row in rows] == [
        ("a", 3.0, None),
        ("b", 1.235, 1.5),
    ]


def test_workloads_are_what_they_say_and_the_same_every_time():
    ragged, even, group = ragged_sft(), even_sft(), rl_group()
    assert ragged.padding >= 1.5
    assert ragged.num_weighted == pytest.approx(ragged.num_tokens / 3, rel=0.02)
    assert even.padding == pytest.approx(1.1, abs=0.02)
    assert group.num_weighted == 16 * 64
    assert {len(datum) for datum in group.data} == {256 + 64 - 1}
    assert len({datum.tokens[:256].tobytes() for datum in group.data}) == 1
    assert all((d.tokens[1:] == d.targets[:-1]).all() for d in ragged.data)
    for tokens in (16, 128):
        assert [batch.num_tokens for batch in tenants(3, tokens)] == [tokens] * 3
    assert all(16 <= len(r.prompt) <= 96 and 8 <= r.new_tokens <= 64 for r in sampling(32))
    again = ragged_sft()
    assert all((a.tokens == b.tokens).all() for a, b in zip(ragged.data, again.data, strict=True))
