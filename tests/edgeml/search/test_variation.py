"""Point → recipe: what changes, and what must not."""

from dataclasses import replace

import pytest

from edgeml.recipes.recipe import PassOptions, Recipe, SearchOptions
from edgeml.recipes.verbs import VERBS, trains
from edgeml.search.space import Point
from edgeml.search.variation import shaped, varied, without_qat

from .test_space import trained

PRUNE = PassOptions("prune", {"ratio": 0.4, "epochs": 9, "importance": "taylor"})
DISTILL = PassOptions("distill", {"epochs": 3, "student": "nets:small"})


def recipe(*passes: PassOptions) -> Recipe:
    return trained(passes=passes, search=SearchOptions())


def verbs(made: Recipe) -> list[str]:
    return [one.verb for one in made.passes]


def test_a_pass_of_the_recipe_is_the_template() -> None:
    made = varied(recipe(PRUNE), Point(0.7, False, "fp32"))
    assert made.passes == (PassOptions("prune", {**PRUNE.parameters, "ratio": 0.7}),)
    made = varied(recipe(PRUNE, DISTILL), Point(0.7, True, "fp32"))
    assert made.passes[1] == DISTILL


@pytest.mark.parametrize(
    ("passes", "point", "wanted"),
    [
        ((), (0.5, True), ["prune", "distill"]),
        ((), (0.5, False), ["prune"]),
        ((), (0.0, False), []),
        ((), (None, None), []),
        (("train", "qat", "export"), (0.3, True),
         ["train", "prune", "distill", "qat", "export"]),
        (("train", "distill"), (0.3, True), ["train", "prune", "distill"]),
        (("train", "distill"), (0.3, False), ["train", "prune"]),
        (("prune", "distill"), (0.0, True), ["distill"]),
        (("prune", "distill"), (None, None), ["prune", "distill"]),
    ],
)  # fmt: skip
def test_passes_are_put_in_or_taken_out(passes, point, wanted) -> None:
    own = recipe(*(PassOptions(verb) for verb in passes))
    assert verbs(varied(own, Point(*point, "fp32"))) == wanted


def test_the_point_reaches_quantization_and_calibration() -> None:
    own = recipe()
    own = replace(own, quantize=replace(own.quantize, keep=("a",), percentile=99.0))
    made = varied(own, Point(None, None, "int8", "entropy", 50, 2), ("b", "a", "c"))
    assert made.quantize.precisions == ("int8",)
    assert made.quantize.methods == ("entropy",)
    assert made.quantize.keep == ("a", "b", "c")
    assert made.quantize.percentile == 99.0
    assert made.data.samples == 50
    made = varied(own, Point(None, None, "fp16"))
    assert (made.quantize.methods, made.quantize.keep) == ((), ("a",))
    assert made.data == own.data


def test_everything_else_stays_and_the_recipe_itself_does_not_change() -> None:
    own = recipe(PRUNE, DISTILL)
    before = repr(own)
    made = varied(own, Point(0.7, False, "int8", "minmax", 9))
    assert repr(own) == before
    assert made.search is None, "a point is not searched again"
    same = replace(
        made, passes=own.passes, quantize=own.quantize, data=own.data, search=own.search
    )
    assert same == own


def test_the_untrained_network_has_its_shape_and_trains_nothing() -> None:
    passes = (PassOptions("train"), PRUNE, DISTILL, PassOptions("qat"),
              PassOptions("export"))  # fmt: skip
    made = shaped(recipe(PRUNE, PassOptions("train"), *passes[2:]), 8)
    assert verbs(made) == ["prune", "distill", "export"]
    assert not any(trains(one.verb, one.parameters) for one in made.passes)
    cut = made.passes[0].parameters
    assert (cut["ratio"], cut["channel_multiple"]) == (0.4, 8)
    assert cut["importance"] == "l2", "taylor needs samples"
    without = shaped(recipe(PRUNE, PassOptions("distill")), 8)
    assert verbs(without) == ["prune"], "without a student nothing changes its shape"
    own = PassOptions("prune", {"channel_multiple": 4})
    assert shaped(recipe(own), 8).passes[0].parameters["channel_multiple"] == 4


def test_what_every_point_has_in_common_is_trained() -> None:
    train = PassOptions("train", {"epochs": 2})
    made = shaped(recipe(train, PRUNE, PassOptions("train")), 8)
    assert verbs(made) == ["train", "prune"]
    assert made.passes[0] == train


def test_every_verb_that_trains_is_known_to_the_untrained_recipe() -> None:
    for verb in VERBS:
        made = shaped(recipe(PRUNE, PassOptions(verb)), 8)
        assert not any(trains(one.verb, one.parameters) for one in made.passes), verb


def test_trials_do_not_train_for_quantization() -> None:
    passes = (PRUNE, PassOptions("qat"))
    assert verbs(without_qat(recipe(*passes))) == ["prune"]
