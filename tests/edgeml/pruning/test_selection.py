"""Which channels go, in which numbers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgeml.pruning.groups import Group
from edgeml.pruning.selection import Wish, counts, select
from edgeml.pruning.slots import Slot


def group(name: str, count: int, makers: int = 1, **more: object) -> Group:
    places = tuple((place,) for place in range(count))
    slots = tuple(
        Slot(f"{name}{n}", "makes", ((f"{name}{n}.weight", 0),), (), places)
        for n in range(makers)
    )
    return Group(name, count, slots, **more)


def gone(groups: list[Group], scores: dict, **wish: object) -> dict[str, list[int]]:
    given_ = {"share": 0.5, "shares": {}, "scope": "layer", "multiple": 16} | wish
    widths = {one.name: one.count for one in groups}
    return select(groups, scores, Wish(widths=widths, **given_))


def test_what_may_stay() -> None:
    assert counts(group("a", 64), 16) == [64, 48, 32, 16]
    assert counts(group("a", 40), 16) == [40, 32, 16]
    assert counts(group("a", 16), 16) == [16]
    assert counts(group("a", 10), 16) == [10]
    assert counts(group("a", 48, unit=12), 16) == [48]
    assert counts(group("a", 4, heads=True), 16) == [4, 3, 2, 1]


def test_the_least_important_go() -> None:
    scores = {"a": np.array([3.0, 1, 4, 1, 5, 9, 2, 6])}
    assert gone([group("a", 8)], scores, multiple=2) == {"a": [0, 1, 3, 6]}


def test_a_layers_share_is_rounded_to_what_is_nearest() -> None:
    scores = {"a": np.arange(64.0)}
    for share, kept in ((0.1, 64), (0.2, 48), (0.6, 32), (0.9, 16), (0.99, 16)):
        found = gone([group("a", 64)], scores, share=share)
        assert 64 - len(found["a"]) == kept


def test_globally_the_least_important_block_goes_first() -> None:
    groups = [group("a", 32), group("b", 32), group("c", 32)]
    scores = {"a": np.full(32, 3.0), "b": np.full(32, 1.0), "c": np.full(32, 2.0)}
    third = gone(groups, scores, share=0.34, scope="global")
    assert {name: len(channels) for name, channels in third.items()} == {
        "a": 0, "b": 16, "c": 16,
    }  # fmt: skip
    most = gone(groups, scores, share=0.99, scope="global")
    assert all(len(channels) == 16 for channels in most.values())


def test_a_channel_of_many_layers_counts_for_many() -> None:
    groups = [group("a", 32, makers=3), group("b", 32)]
    scores = {"a": np.full(32, 1.0), "b": np.full(32, 2.0)}
    found = gone(groups, scores, share=0.375, scope="global")
    assert (len(found["a"]), len(found["b"])) == (16, 0)


def test_a_share_of_its_own_goes_before() -> None:
    groups = [group("a", 64), group("b", 64)]
    scores = {"a": np.arange(64.0), "b": np.arange(64.0)}
    for scope in ("global", "layer"):
        found = gone(groups, scores, share=0.5, shares={"b": 0.0}, scope=scope)
        assert (len(found["a"]), len(found["b"])) == (32, 0)


def test_tied_heads_lose_as_much() -> None:
    heads = group("h", 4, heads=True)
    stream = group("a", 64, unit=16, tied=(heads,))
    scores = {"a": np.arange(64.0), "h": np.array([4.0, 1, 3, 2])}
    found = gone([stream], scores)
    assert found == {"a": list(range(32)), "h": [1, 3]}


@given(
    st.lists(st.tuples(st.integers(1, 150), st.integers(1, 3)), min_size=1, max_size=5),
    st.floats(0, 0.99),
    st.sampled_from([1, 4, 8, 16]),
    st.sampled_from(["global", "layer"]),
    st.integers(0, 2**31),
)
def test_counts_are_multiples_and_the_share_is_met(
    sizes: list, share: float, multiple: int, scope: str, seed: int
) -> None:
    groups = [group(f"g{n}", *size) for n, size in enumerate(sizes)]
    random = np.random.default_rng(seed)
    scores = {one.name: random.random(one.count) for one in groups}
    found = gone(groups, scores, share=share, multiple=multiple, scope=scope)
    lost = 0.0
    for one in groups:
        left = one.count - len(found[one.name])
        assert left == one.count or (left > 0 and left % multiple == 0)
        assert len(set(found[one.name])) == len(found[one.name])
        lost += one.cost * len(found[one.name])
    total = sum(one.cost * one.count for one in groups)
    step = max(one.cost for one in groups) * multiple
    assert lost <= share * total + step * (len(groups) if scope == "layer" else 1)
    most = sum(one.cost * (one.count - counts(one, multiple)[-1]) for one in groups)
    if scope == "global" and lost < most - 1e-9:
        assert lost >= share * total - step


def test_the_second_round_counts_from_the_beginning() -> None:
    scores = {"a": np.arange(48.0)}
    wish = Wish(0.75, {}, "layer", 16, {"a": 64})
    assert len(select([group("a", 48)], scores, wish)["a"]) == 32
    wish = Wish(0.75, {}, "global", 16, {"a": 64})
    assert len(select([group("a", 48)], scores, wish)["a"]) == 32
