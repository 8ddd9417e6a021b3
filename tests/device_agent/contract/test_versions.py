from hypothesis import given
from hypothesis import strategies as st

from device_agent.contract.versions import version_key

NUMBERS = st.lists(st.integers(0, 99_999), min_size=1, max_size=4)


def test_versions_compare_by_number() -> None:
    assert version_key("1.9") < version_key("1.31.1") < version_key("2026.4.1-2-rel")
    assert version_key("0.2.14.0") < version_key("1.0.1") < version_key("2.3.0")
    assert version_key("dev") < version_key("0")


@given(NUMBERS, NUMBERS)
def test_they_are_in_the_order_of_their_numbers(one: list[int], two: list[int]) -> None:
    first, second = (".".join(map(str, numbers)) for numbers in (one, two))
    assert (version_key(first) < version_key(second)) == (one < two)


def test_a_hostile_one_is_read_too() -> None:
    assert version_key("9" * 100_000) > version_key("1.0")
