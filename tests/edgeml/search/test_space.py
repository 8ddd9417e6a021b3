"""Points and spaces: what a recipe gives reason to try."""

from dataclasses import replace
from pathlib import Path

import pytest

from calibration.dataset import DataSource
from edgeml.errors import UsageError
from edgeml.recipes.recipe import (
    Budget,
    DataOptions,
    MetricOptions,
    ModelSource,
    PassOptions,
    Recipe,
    SearchOptions,
)
from edgeml.search.space import Point, Space, space_of

ABLE = [
    ("fp32", ()), ("fp16", ()), ("int8", ("minmax", "entropy")), ("int8-dynamic", ()),
]  # fmt: skip
SPACE = Space(
    prune=(0.0, 0.5), distill=(False, True), precision=("fp32", "int8"),
    method=("minmax", "entropy"), samples=(50, 200), keep=(0, 2),
)  # fmt: skip


def plain(**changes: object) -> Recipe:
    """A recipe without training data."""
    recipe = Recipe(
        folder=Path(),
        model=ModelSource("model:factory", "net", "1"),
        data=DataOptions(DataSource("a.npz"), DataSource("b.npz")),
        metric=MetricOptions("top1"),
        budget=Budget(),
        targets=("cpu-x86_64",),
    )
    return replace(recipe, **changes)  # type: ignore[arg-type]


def trained(**changes: object) -> Recipe:
    recipe = plain(**changes)
    return replace(recipe, data=replace(recipe.data, train=DataSource("c.npz")))


def test_a_recipe_without_training_data_is_searched_for_quantization_only() -> None:
    space = space_of(plain(), ABLE)
    assert (space.prune, space.distill) == ((None,), (None,))
    assert space.precision == ("fp32", "fp16", "int8", "int8-dynamic")
    assert space.method == ("minmax", "entropy"), "what the target's tools have"
    assert space.samples == (50, 200)
    assert space.keep == (0, 2, 4)
    assert len(space.points) == 3 + 2 * 2 * 3


def test_with_training_data_the_network_varies_too() -> None:
    passes = (PassOptions("prune", {"ratio": 0.4}),)
    space = space_of(trained(passes=passes), ABLE)
    assert space.prune == (0.0, 0.3, 0.4, 0.5, 0.7), "the recipe's own is among them"
    assert space.distill == (False, True)


def test_the_table_has_the_last_word() -> None:
    options = SearchOptions(
        prune=(0.5, 0.2), distill=(True,), precisions=("int8",), methods=("entropy",),
        samples=(9,), keep=(3, 1),
    )  # fmt: skip
    space = space_of(trained(search=options), ABLE)
    assert space == Space((0.2, 0.5), (True,), ("int8",), ("entropy",), (9,), (1, 3))


def test_the_quantize_table_is_heard_where_the_search_is_silent() -> None:
    recipe = plain()
    quantize = replace(recipe.quantize, precisions=("int8",), methods=("minmax",))
    space = space_of(replace(recipe, quantize=quantize), ABLE)
    assert (space.precision, space.method) == (("int8",), ("minmax",))


def test_a_tool_without_methods_has_its_own_way() -> None:
    space = space_of(plain(), [("fp32", ()), ("int8", ())])
    assert space.method == ("",)
    assert Point(None, None, "int8", "", 50) in space.points


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (SearchOptions(precisions=("int4",)), "precisions: the target has fp32"),
        (SearchOptions(methods=("percentile",)), "methods: the target has minmax"),
    ],
)
def test_what_the_target_cannot_do_is_refused(options, named) -> None:
    with pytest.raises(UsageError, match=named):
        space_of(plain(search=options), ABLE)


def test_points_are_equal_when_they_build_the_same() -> None:
    rest = {"prune": 0.5, "distill": True, "method": "entropy", "keep": 2}
    fp32 = [SPACE.point({**rest, "precision": "fp32", "samples": n}) for n in (50, 200)]
    assert fp32[0] == fp32[1] == Point(0.5, True, "fp32")
    int8 = [SPACE.point({**rest, "precision": "int8", "samples": n}) for n in (50, 200)]
    assert int8[0] != int8[1]


def test_a_whole_network_learns_only_from_another() -> None:
    whole = {"prune": 0.0, "distill": True, "precision": "fp32", "method": "minmax",
             "samples": 50, "keep": 0}  # fmt: skip
    assert SPACE.point(whole).distill is False
    assert replace(SPACE, tutored=True).point(whole).distill is True
    passes = (PassOptions("distill", {"student": "a:b"}),)
    assert space_of(trained(passes=passes), ABLE).tutored


def test_every_point_is_there_once_and_the_opening_is_among_them() -> None:
    points = SPACE.points
    assert len(points) == len(set(points)) == (1 + 2) * (1 + 2 * 2 * 2)
    assert SPACE.opening == (
        Point(0.0, False, "fp32"), Point(0.0, False, "int8", "minmax", 200, 0),
    )  # fmt: skip
    assert set(SPACE.opening) <= set(points)


def test_a_space_that_nobody_could_search_is_refused() -> None:
    huge = replace(SPACE, keep=tuple(range(1000)), samples=tuple(range(1, 1000)))
    with pytest.raises(UsageError, match="points, 100000 at most"):
        _ = huge.points


def test_a_point_in_words() -> None:
    point = Point(0.5, True, "int8", "minmax", 200, 2)
    assert (
        point.text == "prune 0.5, distilled, int8 minmax, 200 samples, 2 layers float"
    )
    assert Point(None, None, "fp16").text == "fp16"
    assert Point(**point.values) == point
