import random

from hypothesis import given
from hypothesis import strategies as st

from device_agent.link.backoff import full_jitter


@given(
    attempt=st.integers(0, 10**9), first=st.floats(0.001, 100),
    most=st.floats(0.001, 1e6), chance=st.floats(0, 1, exclude_max=True),
)  # fmt: skip
def test_the_wait_is_bounded_whatever_happens(
    attempt: int, first: float, most: float, chance: float
) -> None:
    wait_s = full_jitter(attempt, first, most, lambda: chance)
    assert 0 <= wait_s <= min(most, first * 2.0 ** min(attempt, 64))


def test_devices_that_were_lost_together_come_back_spread() -> None:
    chance = random.Random(7)
    waits = [full_jitter(4, 2.0, 600.0, chance.random) for _ in range(10_000)]
    seconds = [sum(low <= wait < low + 1 for wait in waits) for low in range(32)]
    assert sum(seconds) == 10_000
    assert max(seconds) < 400, "no second has more than a hair above its share of 312"
