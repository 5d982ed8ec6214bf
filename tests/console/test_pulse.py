"""Rates and percentiles of the overview, by hand; and how health is judged."""

import pytest
from tinsmith_server.console.overview import judge
from tinsmith_server.console.pulse import Bucket, percentile, rate
from tinsmith_server.status import WorkerStatus

UP = WorkerStatus(name="a", base_models=["m"], lease_seconds=4.0, num_runs=1, num_samples=0)
GONE = WorkerStatus(name="b", base_models=["m"], lease_seconds=None, num_runs=1, num_samples=0)


def buckets(*counts: dict[str, int]) -> list[Bucket]:
    return [Bucket(10 * index, one) for index, one in enumerate(counts)]


def test_the_rate_is_of_the_last_whole_minute() -> None:
    # Six whole buckets of 100 tokens and one that is filling: 600 tokens in 60 s.
    found = buckets({"t:tokens": 9999}, *[{"t:tokens": 100}] * 6, {"t:tokens": 7})
    assert rate(found, "t", "tokens") == 10.0
    assert rate(found, "s", "tokens") == 0.0


def test_a_percentile_lies_where_its_class_says() -> None:
    # 90 requests from 32 to 45.3 ms (k = 10) and 10 from 1024 to 1448 ms (k = 20). The 95th of 100 is
    # the fifth of the ten: half way, on a logarithmic scale: 2^(20.5 / 2) = 1217.7.
    found = buckets({"t:10": 60, "t:20": 4, "s:30": 50, "t:tokens": 10**6}, {"t:10": 30, "t:20": 6})
    assert percentile(found, "t", 0.95) == pytest.approx(1217.748, abs=0.01)
    assert percentile(found, "t", 0.45) == pytest.approx(2 ** (10.5 / 2))
    assert percentile(buckets({}), "t", 0.95) is None


@pytest.mark.parametrize(
    ("workers", "counts", "oldest", "tone", "sentence"),
    [
        ([], {}, 0.0, "bad", "No worker is up"),
        ([GONE], {"t:requests": 9}, 0.0, "bad", "No worker is up"),
        ([UP, GONE], {}, 61.0, "warn", "Busy"),
        ([UP], {"t:requests": 20, "t:failed": 3}, 0.0, "warn", "3 failed in five minutes"),
        ([UP], {"t:requests": 100, "t:failed": 3}, 0.0, "good", "Healthy, at work"),
        ([UP], {}, 0.0, "good", "Healthy, idle"),
    ],
)
def test_health_in_one_word(
    workers: list[WorkerStatus], counts: dict[str, int], oldest: float, tone: str, sentence: str
) -> None:
    health = judge(workers, buckets(counts), oldest, queued=0)
    assert (health.tone, health.sentence) == (tone, sentence)
