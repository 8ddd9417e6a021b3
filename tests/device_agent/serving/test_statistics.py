from hypothesis import given
from hypothesis import strategies as st

from device_agent.serving.statistics import BUCKETS_US, Statistics


def test_everything_starts_at_nothing() -> None:
    one, other = Statistics(), Statistics()
    one.answered(2, 10, 20, 30)
    one.executed(2, 20)
    one.failed(5)
    one.refuse("queue")
    assert other == Statistics()


def test_an_answer_counts_rows_and_times() -> None:
    statistics = Statistics()
    statistics.answered(3, 100, 200, 350)
    statistics.answered(1, 0, 50, 60)
    assert statistics.inferences == 4
    assert (statistics.success.count, statistics.success.ns) == (2, 410)
    assert (statistics.queue.count, statistics.queue.ns) == (2, 100)
    assert (statistics.infer.count, statistics.infer.ns) == (2, 250)
    assert statistics.executions == 0
    assert statistics.last_ms > 1_600_000_000_000


def test_runs_are_counted_by_their_rows() -> None:
    statistics = Statistics()
    for rows, ns in [(1, 10), (8, 40), (8, 50)]:
        statistics.executed(rows, ns)
    assert statistics.executions == 3
    assert {rows: (d.count, d.ns) for rows, d in statistics.batches.items()} == {
        1: (1, 10), 8: (2, 90),
    }  # fmt: skip


def test_failures_and_refusals_are_apart() -> None:
    statistics = Statistics()
    statistics.failed(70)
    for reason in ("queue", "deadline", "queue"):
        statistics.refuse(reason)
    assert (statistics.fail.count, statistics.fail.ns) == (1, 70)
    assert statistics.refused == {"queue": 2, "deadline": 1}
    assert sum(statistics.histogram) == 0


def test_an_edge_belongs_to_the_bucket_below_it() -> None:
    for bucket, edge_us in enumerate(BUCKETS_US):
        statistics = Statistics()
        statistics.answered(1, 0, 0, 1000 * edge_us)
        statistics.answered(1, 0, 0, 1000 * edge_us + 1)
        assert statistics.histogram[bucket : bucket + 2] == [1, 1]


@given(st.lists(st.integers(0, 10**11)))
def test_every_answer_is_in_one_bucket(times: list[int]) -> None:
    statistics = Statistics()
    for ns in times:
        statistics.answered(1, 0, ns, ns)
    assert sum(statistics.histogram) == len(times)
    below = 0
    for count, edge_us in zip(statistics.histogram, BUCKETS_US, strict=False):
        below += count
        assert below == sum(ns <= 1000 * edge_us for ns in times)
