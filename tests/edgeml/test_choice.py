"""Gates and choice as what they are: a pure function of the records."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.runtimes.base import Coverage
from edgeml.candidate import LayerError
from edgeml.choice import (
    DEFAULT_DROP,
    OF_DEVICE,
    OUTCLASSED,
    SAME_SIZE,
    SAME_SPEED,
    SLOWER,
    allowed_drop,
    choose,
    float_fits,
    gate,
    is_slower,
    mark_slower,
    score,
)
from edgeml.outcome import Candidate, Evaluation, Latency
from edgeml.recipes.recipe import Budget, MetricOptions

TOP1 = MetricOptions("top1")
RMSE = MetricOptions("rmse", better="lower")
FLOAT_MS = 1.0
DIGEST = "0" * 64


def evaluation(
    value: float = 0.9, flips: float | None = 0.0, **more: Any
) -> Evaluation:
    metrics = {"top1": value, "rmse": value}
    return Evaluation(metrics, 100, DIGEST, flip_rate=flips, **more)


def latency(p50: float, floating: float = FLOAT_MS) -> Latency:
    return Latency(p50, p50 * 2, floating, 1, "here", 30)


def candidate(
    name: str = "int8", precision: str = "int8", value: float = 0.9, p50: float = 0.5,
    size: int = 100, flips: float | None = 0.0, **more: Any,
) -> Candidate:  # fmt: skip
    plain = Candidate(
        name, precision, "fits", size_bytes=size, evaluation=evaluation(value, flips),
        latency=latency(p50), peak_memory_bytes=1000, coverage=Coverage(10, ()),
    )  # fmt: skip
    return replace(plain, **more)


def floating(**more: Any) -> Candidate:
    return candidate("fp32", "fp32", **{"p50": FLOAT_MS, "size": 400, **more})


def gated(
    one: Candidate, budget: Budget, metric: MetricOptions = TOP1,
    oracle: Evaluation | None = None,
) -> Candidate:  # fmt: skip
    misses = gate(one, oracle or evaluation(), budget, metric)
    return replace(one, misses=misses, status="missed" if misses else "fits")


def limits(one: Candidate, budget: Budget, **more: Any) -> list[str]:
    return [miss.limit for miss in gated(one, budget, **more).misses]


# --- gates


BOUNDARIES = [
    ("max_accuracy_drop", 0.02, {"evaluation": evaluation(0.88)},
     {"evaluation": evaluation(0.8799)}),
    ("max_flip_rate", 0.1, {"evaluation": evaluation(flips=0.1)},
     {"evaluation": evaluation(flips=0.1001)}),
    ("max_latency_ms", 0.5, {"latency": latency(0.5)}, {"latency": latency(0.5001)}),
    ("max_size_bytes", 100, {"size_bytes": 100}, {"size_bytes": 101}),
    ("max_memory_bytes", 99, {"peak_memory_bytes": 99}, {"peak_memory_bytes": 100}),
    ("max_fallback_share", 0.2, {"coverage": Coverage(10, ("a", "b"))},
     {"coverage": Coverage(10, ("a", "b", "c"))}),
]  # fmt: skip


@pytest.mark.parametrize(("limit", "allowed", "holds", "fails"), BOUNDARIES)
def test_each_limit_is_held_at_its_boundary_and_missed_just_past_it(
    limit: str, allowed: float, holds: dict[str, Any], fails: dict[str, Any]
) -> None:
    budget = Budget(**{limit: allowed})
    assert limits(candidate(**holds), budget) == []
    assert limits(candidate(**fails), budget) == [limit]


UNMEASURED = [
    ("max_flip_rate", {"evaluation": evaluation(flips=None)}),
    ("max_latency_ms", {"latency": None}),
    ("max_memory_bytes", {"peak_memory_bytes": None}),
    ("max_fallback_share", {"coverage": None}),
]


@pytest.mark.parametrize(("limit", "unknown"), UNMEASURED)
def test_what_was_not_measured_misses_its_limit(
    limit: str, unknown: dict[str, Any]
) -> None:
    missed = gated(candidate(**unknown), Budget(**{limit: 1_000_000}))
    assert [miss.limit for miss in missed.misses] == [limit]
    assert "measured not at all" in missed.misses[0].text


@pytest.mark.parametrize(("limit", "unknown"), UNMEASURED)
def test_what_was_not_measured_and_has_no_limit_passes(
    limit: str, unknown: dict[str, Any]
) -> None:
    assert limits(candidate(**unknown), Budget()) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_is_no_number_misses_the_limit(value: float) -> None:
    assert limits(candidate(value=value), Budget(), metric=RMSE) == [
        "max_accuracy_drop"
    ]


def test_without_a_limit_a_metric_may_drop_one_point() -> None:
    assert allowed_drop(evaluation(0.5), Budget(), TOP1) == DEFAULT_DROP
    assert limits(candidate(value=0.89), Budget()) == []
    assert limits(candidate(value=0.8899), Budget()) == ["max_accuracy_drop"]


def test_without_a_limit_an_error_may_grow_by_a_hundredth_of_itself() -> None:
    oracle = evaluation(50.0)
    assert allowed_drop(oracle, Budget(), RMSE) == pytest.approx(0.5)
    for value, missed in ((50.5, []), (50.51, ["max_accuracy_drop"])):
        one = candidate(value=value)
        assert limits(one, Budget(), metric=RMSE, oracle=oracle) == missed


def test_a_limit_of_zero_is_a_limit() -> None:
    assert allowed_drop(evaluation(), Budget(max_accuracy_drop=0.0), TOP1) == 0.0
    assert limits(candidate(value=0.9), Budget(max_accuracy_drop=0.0)) == []
    assert limits(candidate(value=0.899), Budget(max_accuracy_drop=0.0)) == [
        "max_accuracy_drop"
    ]


@pytest.mark.parametrize(
    ("metric", "day", "night"), [(TOP1, 0.9, 0.7), (RMSE, 1.0, 1.3)]
)
def test_slices_are_judged_each_against_itself_and_the_worst_is_named_first(
    metric: MetricOptions, day: float, night: float
) -> None:
    fine = {"light": {"day": day, "night": day}}
    oracle = replace(evaluation(), slices=fine)
    worse = evaluation(slices={"light": {"day": day, "night": night}})
    budget = Budget(max_accuracy_drop=1.0, max_slice_drop=0.1)
    missed = gated(candidate(evaluation=worse), budget, metric, oracle)
    assert [miss.limit for miss in missed.misses] == ["max_slice_drop"]
    assert missed.misses[0].measured == pytest.approx(abs(day - night))
    assert missed.misses[0].guilty[0] == "light=night"
    assert "light=night" in missed.misses[0].text


def test_a_slice_that_got_better_misses_nothing() -> None:
    oracle = evaluation(slices={"light": {"day": 0.5}})
    better = evaluation(slices={"light": {"day": 0.9}})
    budget = Budget(max_slice_drop=0.0)
    assert limits(candidate(evaluation=better), budget, oracle=oracle) == []


def test_an_accuracy_miss_names_the_three_worst_layers() -> None:
    errors = tuple(LayerError(f"conv{n}", "Conv", 10, 9 - n) for n in range(5))
    missed = gated(candidate(value=0.5, layer_errors=errors), Budget())
    assert missed.misses[0].guilty == ("conv0", "conv1", "conv2")


def test_a_fallback_miss_names_the_operators() -> None:
    one = candidate(coverage=Coverage(4, ("Loop", "If", "Scan", "Log")))
    (miss,) = gated(one, Budget(max_fallback_share=0.1)).misses
    assert miss.guilty == ("Loop", "If", "Scan")
    assert miss.measured == 1.0


# --- speed against float32


def test_a_candidate_is_slower_only_past_the_noise_of_its_own_comparison() -> None:
    assert not is_slower(candidate(p50=FLOAT_MS * SLOWER))
    assert is_slower(candidate(p50=FLOAT_MS * SLOWER + 0.001))
    assert not is_slower(floating(latency=latency(9.0, 1.0)))
    assert not is_slower(candidate(latency=None))


def test_the_float_that_counts_is_the_one_measured_in_turn() -> None:
    busy = candidate(latency=latency(5.0, floating=6.0))
    assert mark_slower([floating(), busy])[1].status == "fits"


def test_slower_ones_are_marked_with_both_figures() -> None:
    slow = mark_slower([floating(), candidate(p50=2.0)])[1]
    assert slow.status == "slower"
    assert "2 ms" in slow.reason
    assert "1 ms" in slow.reason


def test_where_float32_misses_the_budget_a_slower_candidate_may_ship() -> None:
    plain = gated(floating(), Budget(max_size_bytes=200))
    marked = mark_slower([plain, candidate(p50=2.0)])
    assert not float_fits(marked)
    chosen, _ = choose(marked, TOP1)
    assert chosen is not None
    assert chosen.name == "int8"


# --- the choice


def test_the_fastest_of_clearly_different_ones_wins() -> None:
    one, _ = choose([floating(), candidate("a", p50=0.4), candidate("b", p50=0.6)],
                    TOP1)  # fmt: skip
    assert one is not None
    assert one.name == "a"


@pytest.mark.parametrize(
    "worse",
    [
        {"value": 0.8995},
        {"flips": 0.01},
        {"size": 101},
        {"name": "z"},
    ],
)
def test_of_equally_fast_ones_accuracy_flips_bytes_and_name_decide(
    worse: dict[str, Any],
) -> None:
    best = candidate("a", p50=0.5 * SAME_SPEED - 0.001)
    other = candidate(**{"name": "b", "p50": 0.5, **worse})
    chosen, why = choose([other, best], TOP1)
    assert chosen is best
    assert "most accurate of 2 equally fast ones" in why


def test_just_past_the_noise_the_faster_one_wins() -> None:
    accurate = candidate("a", value=0.9005, p50=0.5 * SAME_SPEED + 0.001)
    fast = candidate("b", value=0.9, p50=0.5)
    assert choose([accurate, fast], TOP1)[0] is fast


def test_a_tenth_of_a_point_outclasses_unless_it_costs_bytes() -> None:
    fast = candidate("fast", value=0.9, p50=0.1, size=100)
    for value, size, winner in (
        (0.9 + OUTCLASSED + 1e-6, 100, "accurate"),
        (0.9 + OUTCLASSED + 1e-6, int(100 * SAME_SIZE), "accurate"),
        (0.9 + OUTCLASSED + 1e-6, int(100 * SAME_SIZE) + 1, "fast"),
        (0.9 + OUTCLASSED, 100, "fast"),
    ):
        accurate = candidate("accurate", value=value, p50=0.5, size=size)
        chosen, _ = choose([fast, accurate], TOP1)
        assert chosen is not None
        assert chosen.name == winner, (value, size)


def test_floats_neither_outclass_nor_are_outclassed() -> None:
    for precision in ("fp32", "fp16"):
        plain = candidate("float", precision, value=1.0, p50=1.0, size=10)
        fast = candidate("fast", value=0.9, p50=0.1)
        assert choose([plain, fast], TOP1)[0] is fast
    half = candidate("half", "fp16", value=0.9, p50=0.1)
    assert choose([half, candidate(value=0.95)], TOP1)[0] is half


def test_the_only_one_that_fits_is_said_to_be_the_only_one() -> None:
    chosen, why = choose([floating()], TOP1)
    assert chosen is not None
    assert why == "the only candidate that holds the budget"


def untimed(name: str, precision: str, **more: Any) -> Candidate:
    return candidate(
        name, precision, latency=None, peak_memory_bytes=None, coverage=None, **more
    )


def test_where_nothing_is_timed_the_profiles_order_decides_then_accuracy() -> None:
    tried = [
        untimed("fp32", "fp32", value=0.95, size=400),
        untimed("fp16", "fp16", value=0.95, size=200),
        untimed("a", "int8", value=0.90),
        untimed("b", "int8", value=0.91),
    ]
    for order, wanted in (
        (("int8", "fp16", "fp32"), "b"),
        (("fp16", "fp32", "int8"), "fp16"),
        ((), "fp16"),
    ):
        chosen, why = choose(tried, TOP1, order)
        assert chosen is not None and chosen.name == wanted
        assert "not timed here" in why
        assert ("fastest in" in why) == bool(order)
    chosen, why = choose(tried[:1], TOP1, ("int8", "fp16", "fp32"))
    assert chosen == tried[0]
    assert why == "the only candidate that holds the budget; not timed here"


def test_unchecked_limits_are_not_missed_and_others_are() -> None:
    budget = Budget(max_latency_ms=0.1, max_memory_bytes=1, max_size_bytes=1)
    one = untimed("int8", "int8")
    missed = gate(one, evaluation(), budget, TOP1, OF_DEVICE)
    assert [miss.limit for miss in missed] == ["max_size_bytes"]
    strict = [miss.limit for miss in gate(one, evaluation(), budget, TOP1)]
    assert strict == ["max_latency_ms", "max_size_bytes", "max_memory_bytes"]


def test_what_does_not_fit_is_not_chosen() -> None:
    rest = [candidate(status=status) for status in ("missed", "slower", "skipped")]
    chosen, _ = choose([*rest, candidate("failed", status="failed")], TOP1)
    assert chosen is None


def test_why_there_is_none_names_nearest_limit_value_and_the_guilty() -> None:
    errors = (LayerError("/head/Gemm", "Gemm", 10, 9),)
    budget = Budget(max_accuracy_drop=0.01, max_size_bytes=50)
    far = gated(candidate("far", value=0.8, size=4000), budget)
    near = gated(candidate("near", value=0.85, size=40, layer_errors=errors), budget)
    chosen, why = choose([far, near], TOP1)
    assert chosen is None
    assert "nearest is near" in why
    assert "max_accuracy_drop 0.01, measured 0.05 (/head/Gemm)" in why
    assert "far" not in why


def test_of_equally_many_misses_the_more_accurate_is_nearest() -> None:
    budget = Budget(max_size_bytes=50)
    ones = [gated(candidate(f"c{n}", value=0.895 + n / 1000), budget) for n in range(3)]
    _, why = choose(ones, TOP1)
    assert "nearest is c2: max_size_bytes 50, measured 100" in why


def test_bytes_are_written_in_full() -> None:
    one = gated(candidate(size=1_234_567), Budget(max_size_bytes=1_000_000))
    assert one.misses[0].text == "max_size_bytes 1,000,000, measured 1,234,567"


def test_none_made_says_so() -> None:
    failed = candidate(status="failed", evaluation=None)
    assert choose([failed], TOP1) == (
        None, "no candidate could be made that is fit to ship",
    )  # fmt: skip
    assert choose([], TOP1)[0] is None


def test_a_lower_error_scores_higher() -> None:
    assert score(candidate(value=1.0), RMSE) > score(candidate(value=2.0), RMSE)


# --- properties


values = st.integers(0, 200).map(lambda n: 0.8 + n / 1000)
numbers = st.fixed_dictionaries(
    {
        "precision": st.sampled_from(["fp16", "int8", "int8-dynamic", "mixed"]),
        "value": values,
        "p50": st.integers(1, 40).map(lambda n: n / 20),
        "size": st.integers(50, 400),
        "flips": st.one_of(st.none(), st.integers(0, 20).map(lambda n: n / 100)),
    }
)
budgets = st.builds(
    Budget,
    max_accuracy_drop=st.sampled_from([None, 0.0, 0.01, 0.05, 0.5]),
    max_flip_rate=st.sampled_from([None, 0.0, 0.05, 0.1]),
    max_latency_ms=st.sampled_from([None, 0.3, 0.9, 1.5]),
    max_size_bytes=st.sampled_from([None, 60, 200, 400]),
)


@st.composite
def trials(draw: st.DrawFn) -> tuple[list[Candidate], Budget]:
    """Float32 and up to eight others, gated, in any order."""
    budget = draw(budgets)
    ones = [floating()] + [
        candidate(f"c{n}", **made)
        for n, made in enumerate(draw(st.lists(numbers, max_size=8)))
    ]
    ones = draw(st.permutations(ones))
    return mark_slower([gated(one, budget) for one in ones]), budget


@given(trials())
def test_what_ships_misses_no_limit(case: tuple[list[Candidate], Budget]) -> None:
    ones, budget = case
    chosen, _ = choose(ones, TOP1)
    if chosen is not None:
        assert gate(chosen, evaluation(), budget, TOP1) == ()
        assert chosen.status == "fits"


@given(trials())
def test_something_ships_where_anything_fits(
    case: tuple[list[Candidate], Budget],
) -> None:
    ones, _ = case
    chosen, why = choose(ones, TOP1)
    assert (chosen is not None) == any(one.status == "fits" for one in ones)
    assert why


@given(trials())
def test_what_ships_is_not_slower_than_a_float32_that_fits(
    case: tuple[list[Candidate], Budget],
) -> None:
    ones, _ = case
    chosen, _ = choose(ones, TOP1)
    if chosen is not None and float_fits(ones):
        assert chosen.latency is not None
        assert chosen.latency.p50_ms <= chosen.latency.float_p50_ms * SLOWER


@given(trials())
def test_what_ships_is_not_outclassed(case: tuple[list[Candidate], Budget]) -> None:
    ones, _ = case
    chosen, _ = choose(ones, TOP1)
    if chosen is None or chosen.precision.startswith("fp"):
        return
    assert not [
        one for one in ones
        if one.status == "fits"
        and not one.precision.startswith("fp")
        and one.size_bytes <= chosen.size_bytes
        and score(one, TOP1) > score(chosen, TOP1) + OUTCLASSED * 1.001
    ]  # fmt: skip


@given(trials(), st.randoms())
def test_order_does_not_matter_and_nothing_is_changed(
    case: tuple[list[Candidate], Budget], random: Any
) -> None:
    ones, _ = case
    before = [repr(one) for one in ones]
    first = choose(ones, TOP1)
    shuffled = list(ones)
    random.shuffle(shuffled)
    again = choose(shuffled, TOP1)
    assert (first[0] and first[0].name) == (again[0] and again[0].name)
    if first[0] is not None:
        assert first == again
    assert [repr(one) for one in ones] == before
