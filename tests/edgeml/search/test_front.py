"""The front, the choice and the nearest miss."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.outcome import Miss, SearchTrial
from edgeml.recipes.recipe import MetricOptions
from edgeml.search.front import excess, missed_by, nearest, ranked, told, with_front

TOP1, MAE = MetricOptions("top1"), MetricOptions("mae", better="lower")


def trial(
    number: int, value: float | None, latency_ms: float | None, size: int | None,
    status: str = "fits", *misses: Miss, precision: str = "int8", prune: float = 0.0,
    float_ms: float = 9.0,
) -> SearchTrial:  # fmt: skip
    point = {"prune": prune, "distill": False, "precision": precision}
    return SearchTrial(
        number, f"point {number}", point, status, precision=precision, value=value,
        flip_rate=0.0, latency_ms=latency_ms, float_latency_ms=float_ms,
        size_bytes=size, misses=misses,
    )  # fmt: skip


def front(*trials: SearchTrial, metric: MetricOptions = TOP1) -> list[int]:
    return [one.number for one in with_front(trials, metric) if one.front]


def test_the_front_is_what_no_other_beats_in_all_three() -> None:
    assert front(
        trial(0, 0.9, 1.0, 100),
        trial(1, 0.8, 0.5, 100),
        trial(2, 0.8, 0.6, 100),  # beaten by 1
        trial(3, 0.7, 0.6, 50),
        trial(4, None, None, 10),  # not measured
        trial(5, 0.9, 1.0, 100),  # as good as 0: both are on it
    ) == [0, 1, 3, 5]


def test_errors_are_better_when_they_are_lower() -> None:
    trials = trial(0, 2.0, 1.0, 9), trial(1, 1.0, 1.0, 9)
    assert front(*trials, metric=MAE) == [1]
    assert front(*trials) == [0]


figures = st.tuples(
    st.sampled_from([0.7, 0.8, 0.9]), st.sampled_from([1.0, 2.0]), st.integers(1, 3)
)


@given(st.lists(figures, min_size=1, max_size=12))
def test_what_is_not_on_the_front_is_beaten_by_something_on_it(rows) -> None:
    trials = [trial(n, *row) for n, row in enumerate(rows)]
    marked = with_front(trials, TOP1)
    on = [one for one in marked if one.front]
    assert on
    for one in marked:
        beaten = any(
            other.value >= one.value
            and other.latency_ms <= one.latency_ms
            and other.size_bytes <= one.size_bytes
            and (other.value, other.latency_ms, other.size_bytes)
            != (one.value, one.latency_ms, one.size_bytes)
            for other in on
        )
        assert beaten != one.front


def test_ranked_by_the_rules_of_a_build() -> None:
    trials = [
        trial(0, 0.95, 2.0, 100, precision="fp32"),
        trial(1, 0.93, 1.00, 90),
        trial(2, 0.94, 1.05, 90),  # as fast as 1 within noise, and more accurate
        trial(3, 0.99, 0.10, 10, "missed", Miss("max_flip_rate", 0.1, 0.2)),
        trial(4, 0.90, 0.10, 100),  # outclassed: larger and less accurate than 1, 2
    ]
    order = [one.number for one, _ in ranked(trials, TOP1)]
    assert order[:2] == [2, 1]
    assert set(order) == {0, 1, 2, 4}


def test_what_is_slower_than_its_own_float_is_no_use_where_that_fits() -> None:
    slow = trial(1, 0.95, 2.2, 50, precision="fp16", float_ms=2.0)
    other = trial(2, 0.95, 2.2, 50, precision="fp16", float_ms=2.0, prune=0.5)
    whole = trial(0, 0.95, 2.0, 100, precision="fp32")
    order = [one.number for one, _ in ranked([whole, slow, other], TOP1)]
    assert sorted(order) == [0, 2]


@pytest.mark.parametrize(
    ("miss", "parts"),
    [
        (Miss("max_latency_ms", 2.0, 3.0), 0.5),
        (Miss("max_size_bytes", 100, 400), 3.0),
        (Miss("max_accuracy_drop", 0.0, 0.02), 2.0),
        (Miss("max_size_bytes", 0, 5), 5.0),
        (Miss("max_memory_bytes", 100, None), 1.0),
    ],
)
def test_how_far_a_limit_is_missed(miss: Miss, parts: float) -> None:
    assert excess(miss) == pytest.approx(parts)


def test_a_miss_is_told_with_its_distance() -> None:
    assert told(Miss("max_size_bytes", 1000, 1500)).endswith(
        "measured 1,500: 50 % over"
    )
    assert told(Miss("max_memory_bytes", 10, None)).endswith("measured not at all")


def test_the_nearest_misses_least_and_was_measured() -> None:
    near = Miss("max_latency_ms", 1.0, 1.1)
    trials = [
        trial(0, None, None, None, "pruned", near),
        trial(1, 0.9, 3.0, 9, "missed", Miss("max_latency_ms", 1.0, 3.0)),
        trial(2, 0.9, 1.2, 9, "missed", Miss("max_latency_ms", 1.0, 1.2)),
        trial(3, 0.9, 1.1, 9, "missed", near, Miss("max_flip_rate", 0.1, 0.2)),
        trial(4, None, None, None, "failed"),
    ]
    assert nearest(trials).number == 2
    assert nearest(trials[:1]).number == 0
    assert nearest(trials[4:]) is None
    assert missed_by(trials[3]) == pytest.approx(1.1)
