"""Point → recipe: what a point changes in a recipe, and nothing else.

Pure functions of records. The passes of the recipe are templates: their parameters
stay but for what the point says, so ``[[pass]] verb = "prune"`` with its own epochs and
importance is pruned like that at every ratio.
"""

from collections.abc import Sequence
from dataclasses import replace

from ..recipes.recipe import PassOptions, Recipe
from ..recipes.verbs import defaults
from .space import Point

AFTER_PRUNE = ("distill", "qat", "export")
"""Verbs that a prune pass goes before, where the recipe has none."""
AFTER_DISTILL = ("qat", "export")
DATA_IMPORTANCE = "taylor"
"""Needs samples to rank channels by."""
QUICK_IMPORTANCE = "l2"


def varied(recipe: Recipe, point: Point, keep: Sequence[str] = ()) -> Recipe:
    """The recipe that builds a point.

    Args:
        recipe: what is varied.
        point: how.
        keep: nodes that stay in float, besides those of the recipe: the point's
            number of most sensitive ones.
    """
    passes = list(recipe.passes)
    if point.prune is not None:
        passes = _pruned(passes, point.prune)
    if point.distill is not None:
        passes = _distilled(passes, point.distill)
    quantize = replace(
        recipe.quantize,
        precisions=(point.precision,),
        methods=(point.method,) if point.method else (),
        keep=tuple(dict.fromkeys((*recipe.quantize.keep, *keep))),
    )
    data = recipe.data
    if point.samples:
        data = replace(data, samples=point.samples)
    return replace(
        recipe, passes=tuple(passes), quantize=quantize, data=data, search=None
    )


def shaped(recipe: Recipe, multiple: int) -> Recipe:
    """The recipe's network in its final shape, before it is fine-tuned to it.

    It tells size and speed, and nothing of accuracy. What is trained before anything
    is made smaller stays: every point has it in common.

    Args:
        recipe: what is to be shaped.
        multiple: what channel counts are rounded to, where its passes do not say so.
    """
    passes: list[PassOptions] = []
    for place, one in enumerate(recipe.passes):
        if "epochs" not in defaults(one.verb) or _is_first(recipe.passes, place):
            passes.append(one)
        elif one.verb == "prune":
            passes.append(_at_rest(one, multiple))
        elif one.verb == "distill" and one.parameters.get("student"):
            passes.append(_with(one, epochs=0))
    return replace(recipe, passes=tuple(passes), search=None)


def without_qat(recipe: Recipe) -> Recipe:
    """The recipe for trials: int8 without training for it (the build has that)."""
    passes = tuple(one for one in recipe.passes if one.verb != "qat")
    return replace(recipe, passes=passes)


def _pruned(passes: Sequence[PassOptions], ratio: float) -> list[PassOptions]:
    if ratio == 0.0:
        return [one for one in passes if one.verb != "prune"]
    if any(one.verb == "prune" for one in passes):
        return [
            _with(one, ratio=ratio) if one.verb == "prune" else one for one in passes
        ]
    return _inserted(passes, PassOptions("prune", {"ratio": ratio}), AFTER_PRUNE)


def _distilled(passes: Sequence[PassOptions], wanted: bool) -> list[PassOptions]:
    if not wanted:
        return [one for one in passes if one.verb != "distill"]
    if any(one.verb == "distill" for one in passes):
        return list(passes)
    return _inserted(passes, PassOptions("distill"), AFTER_DISTILL)


def _inserted(
    passes: Sequence[PassOptions], new: PassOptions, before: Sequence[str]
) -> list[PassOptions]:
    """``new`` before the first pass with one of these verbs, or at the end."""
    places = (place for place, one in enumerate(passes) if one.verb in before)
    at = next(places, len(passes))
    return [*passes[:at], new, *passes[at:]]


def _is_first(passes: Sequence[PassOptions], place: int) -> bool:
    """Whether a pass trains the model as it came."""
    return all(one.verb in ("train", "export") for one in passes[: place + 1])


def _at_rest(prune: PassOptions, multiple: int) -> PassOptions:
    """A prune pass that needs no samples, and cuts as it would with them."""
    quiet = _with(prune, epochs=0)
    if not prune.parameters.get("channel_multiple"):
        quiet = _with(quiet, channel_multiple=multiple)
    if prune.parameters.get("importance") == DATA_IMPORTANCE:
        quiet = _with(quiet, importance=QUICK_IMPORTANCE)
    return quiet


def _with(one: PassOptions, **changes: object) -> PassOptions:
    return PassOptions(one.verb, {**one.parameters, **changes})
