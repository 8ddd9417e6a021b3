"""Plots: in their frame, whatever the values."""

import math

from hypothesis import given
from hypothesis import strategies as st
from pages import Page

from edgeml.report.plots import Bounds, Curve, Point, candidates_plot, latency_plot

POINT = st.builds(
    Point,
    number=st.integers(1, 40),
    name=st.text(max_size=20),
    status=st.sampled_from(["chosen", "fits", "missed", "slower"]),
    latency_ms=st.floats(1e-4, 1e4),
    score=st.floats(-10, 10),
    size_bytes=st.integers(1, 10**9),
)


@given(
    st.lists(POINT, min_size=1, max_size=12),
    st.floats(-10, 10),
    st.none() | st.floats(0, 5),
    st.none() | st.floats(1e-3, 1e3),
    st.sampled_from(["higher", "lower"]),
)
def test_plot_stays_in_its_frame(points, oracle, drop, limit, better):
    sign = 1 if better == "higher" else -1
    bounds = Bounds(
        oracle, None if drop is None else oracle - sign * drop, limit, better
    )
    svg = candidates_plot(
        points, bounds, lambda value: f"{value:.3g}", ident="p", width=340, height=330
    )
    parsed = Page(str(svg))
    circles = [a for tag, a in parsed.tags if tag == "circle"]
    assert all(math.isfinite(float(a["cx"])) for a in circles)
    assert all(52 <= float(a["cx"]) <= 326 for a in circles)
    assert all(26 <= float(a["cy"]) <= 290 for a in circles)


def test_a_candidate_far_off_sits_on_the_edge_with_its_value():
    points = [
        Point(n, f"c{n}", "fits", 1.0 + n / 10, score, 1000)
        for n, score in enumerate([0.9, 0.895, 0.893, 0.1])
    ]
    bounds = Bounds(0.9, 0.89, None, "higher")
    svg = str(
        candidates_plot(
            points, bounds, lambda v: f"{v:.2f}", ident="p", width=900, height=400
        )
    )
    assert svg.count("<circle") == 3
    assert "3: 0.10" in svg


@given(st.lists(st.floats(1e-4, 1e3), min_size=3, max_size=21))
def test_latency_plot_takes_any_quantiles(values):
    curve = Curve("a", "now", tuple(sorted(values)))
    Page(str(latency_plot([curve, curve], ident="l", width=340, height=230)))


def test_a_crowded_plot_names_some_and_draws_all():
    points = [Point(n, f"p{n}", "fits", 1 + n / 10, 0.9, 100) for n in range(1, 31)]
    bounds = Bounds(0.9, 0.89, None, "higher")
    svg = candidates_plot(points, bounds, str, ident="x", width=900, height=400,
                          named={1, 2})  # fmt: skip
    assert svg.count("<circle") == 30
    assert svg.count('class="label') == 2
