import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.serving.forecast import Forecast

MS = 1_000_000


def test_before_anything_ran_more_rows_take_proportionally_longer() -> None:
    forecast = Forecast(2 * MS)
    assert [forecast.expected_ns(rows) for rows in (1, 2, 8)] == [
        2 * MS, 4 * MS, 16 * MS,
    ]  # fmt: skip


def test_it_follows_a_model_that_slows_down_and_recovers() -> None:
    forecast = Forecast(2 * MS)
    for _ in range(60):
        forecast.ran(1, 6 * MS, 0)
    assert forecast.row_ns == pytest.approx(6 * MS, rel=0.05)
    for _ in range(60):
        forecast.ran(1, 2 * MS, 0)
    assert forecast.row_ns == pytest.approx(2 * MS, rel=0.05)


def test_one_hiccup_hardly_counts() -> None:
    forecast = Forecast(2 * MS)
    forecast.ran(1, 10_000 * MS, 0)
    assert forecast.row_ns < 3 * MS
    assert forecast.trusted_ns(1, 0) < 100 * MS


def test_many_rows_that_take_as_long_as_one_do_not_make_one_look_fast() -> None:
    forecast = Forecast(20 * MS)
    for _ in range(50):
        forecast.ran(8, 25 * MS, 0)
    assert forecast.expected_ns(1) == 20 * MS
    assert forecast.expected_ns(8) == pytest.approx(25 * MS, rel=0.1)
    assert forecast.mean_ns == pytest.approx(25 / 8 * MS, rel=0.1)


def test_runs_of_one_row_do_not_change_what_is_known_of_many() -> None:
    forecast = Forecast(20 * MS)
    forecast.ran(64, 40 * MS, 0)
    for _ in range(50):
        forecast.ran(1, 20 * MS, 0)
    assert forecast.expected_ns(64) == pytest.approx(40 * MS)


def test_what_was_long_not_measured_is_doubted() -> None:
    forecast = Forecast(500 * MS)
    assert forecast.trusted_ns(1, 0) == 0, "the loader's figure is no run"
    forecast.ran(1, 500 * MS, 7_000 * MS)
    assert forecast.trusted_ns(1, 7_000 * MS) == 5_000 * MS
    assert forecast.trusted_ns(1, 12_000 * MS) == 0
    assert forecast.trusted_ns(4, 7_000 * MS) == 0, "four rows were never run"


def test_but_never_believed_for_longer_than_half_a_minute() -> None:
    forecast = Forecast(60_000 * MS)
    forecast.ran(1, 60_000 * MS, 0)
    assert forecast.trusted_ns(1, 0) == 30_000 * MS


@pytest.mark.parametrize("rows", [1, 8])
def test_after_a_trial_only_the_trial_counts(rows: int) -> None:
    forecast = Forecast(5_000 * MS)
    forecast.ran(rows, 5_000 * MS * rows, 0)
    forecast.ran(rows, 2 * MS * rows, 0, trial=True)
    assert forecast.expected_ns(rows) == 2 * MS * rows
    forecast.ran(rows, 900 * MS * rows, 0, trial=True)
    assert forecast.expected_ns(rows) == 900 * MS * rows


@given(st.lists(st.integers(50, 10**11), max_size=30), st.integers(50, 10**9))
def test_the_cheap_way_expects_the_same(runs: list[int], first: int) -> None:
    cheap, noted = Forecast(first), Forecast(first)
    for took_ns in runs:
        cheap.ran_one(took_ns)
        noted.ran(1, took_ns, 0)
    assert cheap.row_ns == pytest.approx(noted.row_ns)


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 10**11)), max_size=50),
    st.integers(0, 10**10),
    st.integers(0, 300),
)
def test_always_a_positive_finite_time(
    runs: list[tuple[int, int]], first: int, rows: int
) -> None:
    forecast = Forecast(first)
    for size, took_ns in runs:
        forecast.ran(size, took_ns, 0, trial=took_ns % 3 == 0)
    assert 1 <= forecast.expected_ns(rows) < 1e15
    assert 1 <= forecast.mean_ns < 1e15
    assert forecast.trusted_ns(rows, 0) >= 0
