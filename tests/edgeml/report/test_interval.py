"""Intervals of shares and of their changes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.report.interval import bounded_change, paired_change, wilson


def test_paired_interval_as_published():
    # Agresti and Min (2005): 13 against 7 discordant of 100.
    change = paired_change(13, 7, 100)
    total, difference = 102, 6
    spread = 1.959964 * math.sqrt(21 - difference**2 / total) / total
    assert change.value == 0.06
    assert change.low == pytest.approx(difference / total - spread, abs=1e-6)
    assert change.high == pytest.approx(difference / total + spread, abs=1e-6)
    assert not change.sure


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 2000))
def test_paired_interval_holds_zero_only_without_a_clear_change(gained, lost, more):
    change = paired_change(gained, lost, gained + lost + more)
    other = paired_change(lost, gained, gained + lost + more)
    assert -1 <= change.low <= change.high <= 1
    assert change.low == pytest.approx(-other.high)
    if gained == lost:
        assert not change.sure


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_bounded_interval_is_never_narrower_than_the_exact_one(gained, lost, other):
    samples = 1000
    exact = paired_change(gained, lost, samples)
    wide = bounded_change(500, 500 + gained - lost, gained + lost + other, samples)
    assert wide.value == exact.value
    assert wide.low <= exact.low + 1e-12 and wide.high >= exact.high - 1e-12


def test_wilson_as_published():
    low, high = wilson(81, 263)
    assert (low, high) == pytest.approx((0.2553, 0.3662), abs=1e-4)
