"""What a search looks among: points, each a way to build the recipe.

The rules it keeps:

1. Two points are equal when they build the same thing: what a precision does not use
   (ranges of fp16, say) is empty in its points.
2. The points of a space and their order follow from the recipe and the target alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product
from typing import Any

from ..errors import UsageError
from ..recipes.recipe import Recipe, SearchOptions
from ..recipes.schema import METHODS

PRUNE = (0.0, 0.3, 0.5, 0.7)
SAMPLES = 50
"""Beside ``data.samples``: whether fewer calibration samples do."""
KEEP = (0, 2, 4)
CALIBRATED = frozenset({"int8"})
"""Precisions whose ranges are found on calibration samples beforehand."""
POINTS_MAX = 100_000
AXES = ("prune", "distill", "precision", "method", "samples", "keep")
ORDERED = frozenset({"prune", "samples", "keep"})
"""Axes whose values are numbers: neighbours on them are alike."""


@dataclass(frozen=True)
class Point:
    """One way to build the recipe; None: as the recipe's own passes have it."""

    prune: float | None
    """Share of channels that go."""
    distill: bool | None
    precision: str
    method: str = ""
    samples: int = 0
    """Calibration samples; 0: ranges are not found on samples."""
    keep: int = 0
    """So many of the most sensitive layers stay in float."""

    @property
    def text(self) -> str:
        """The point as people read it."""
        parts = [] if self.prune is None else [f"prune {self.prune:g}"]
        parts += ["distilled"] if self.distill else []
        parts.append(f"{self.precision} {self.method}".strip())
        parts += [f"{self.samples} samples"] if self.samples else []
        parts += [f"{self.keep} layers float"] if self.keep else []
        return ", ".join(parts)

    @property
    def values(self) -> dict[str, Any]:
        """Axis → value, as the report has it."""
        return asdict(self)


@dataclass(frozen=True)
class Space:
    """The values of each axis.

    ``tutored``: distillation has a student or a teacher of its own, so that a network
    that was not pruned has something to learn, too.
    """

    prune: tuple[float | None, ...]
    distill: tuple[bool | None, ...]
    precision: tuple[str, ...]
    method: tuple[str, ...]
    samples: tuple[int, ...]
    keep: tuple[int, ...]
    tutored: bool = False

    def values(self, axis: str) -> tuple[Any, ...]:
        """The values of an axis, in order."""
        found: tuple[Any, ...] = getattr(self, axis)
        return found

    def point(self, values: Mapping[str, Any]) -> Point:
        """The point with one value per axis, without what it has no use for."""
        point = Point(**values)
        distill = point.distill
        if distill and point.prune == 0.0 and not self.tutored:
            distill = False  # a network has nothing to learn from itself
        if point.precision not in CALIBRATED:
            return Point(point.prune, distill, point.precision)
        return Point(
            point.prune, distill, point.precision, point.method, point.samples,
            point.keep,
        )  # fmt: skip

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """Every point once, in order.

        Raises:
            UsageError: there are more than ``POINTS_MAX``.
        """
        axes = [self.values(axis) for axis in AXES]
        count = 1
        for values in axes:
            count *= len(values)
        if count > POINTS_MAX:
            raise UsageError(
                f"the search would be among {count} points, {POINTS_MAX} at most; "
                "give the lists in [search] fewer values"
            )
        found = (
            self.point(dict(zip(AXES, values, strict=True)))
            for values in product(*axes)
        )
        return tuple(dict.fromkeys(found))

    @cached_property
    def opening(self) -> tuple[Point, ...]:
        """What is tried before anything else: the least that can be done.

        The network as whole as it gets, in float and then in int8; what later points
        are compared with.
        """
        whole = {"prune": self.prune[0], "distill": min(self.distill, key=bool)}
        rest = {"method": self.method[0], "samples": self.samples[-1],
                "keep": self.keep[0]}  # fmt: skip
        wanted = [one for one in ("fp32", "int8") if one in self.precision]
        return tuple(self.point({**whole, **rest, "precision": one}) for one in wanted)


def space_of(recipe: Recipe, able: Sequence[tuple[str, tuple[str, ...]]]) -> Space:
    """The space of a recipe's ``[search]`` table, with defaults where it is silent.

    Args:
        recipe: the recipe; a missing table is one that is silent.
        able: precisions that the target can be built in, each with the calibration
            methods that its tools have for it.

    Raises:
        UsageError: nothing is left of what the recipe asks for.
    """
    options = recipe.search or SearchOptions()
    methods_of = dict(able)
    precisions = _wanted(
        "precisions", options.precisions or recipe.quantize.precisions,
        tuple(methods_of),
    )  # fmt: skip
    asked = options.methods or recipe.quantize.methods
    methods: tuple[str, ...] = ("",)  # the tool's own way to find ranges
    if asked or methods_of.get("int8"):
        methods = _methods(precisions, asked, methods_of)
    samples = options.samples or (SAMPLES, recipe.data.samples)
    return Space(
        prune=_prune(recipe, options),
        distill=_distill(recipe, options),
        precision=precisions,
        method=methods,
        samples=tuple(sorted(set(samples))),
        keep=tuple(sorted(options.keep or KEEP)),
        tutored=any(
            one.parameters.get(role)
            for one in recipe.passes
            if one.verb == "distill"
            for role in ("student", "teacher")
        ),
    )


def _methods(
    precisions: tuple[str, ...],
    asked: tuple[str, ...],
    methods_of: Mapping[str, tuple[str, ...]],
) -> tuple[str, ...]:
    if not CALIBRATED.intersection(precisions):
        return ("",)
    there = tuple(one for one in METHODS if one in methods_of["int8"])
    return _wanted("methods", asked, there)


def _prune(recipe: Recipe, options: SearchOptions) -> tuple[float | None, ...]:
    if options.prune:
        return tuple(sorted(map(float, options.prune)))
    if recipe.data.train is None:
        return (None,)
    own = {
        float(one.parameters.get("ratio", 0.5))
        for one in recipe.passes
        if one.verb == "prune"
    }
    return tuple(sorted({*PRUNE, *own}))


def _distill(recipe: Recipe, options: SearchOptions) -> tuple[bool | None, ...]:
    if options.distill:
        return options.distill
    return (None,) if recipe.data.train is None else (False, True)


def _wanted(
    key: str, asked: tuple[str, ...], there: tuple[str, ...]
) -> tuple[str, ...]:
    """Of what is there what is asked for; all of it where nothing is."""
    found = tuple(one for one in there if one in asked) if asked else there
    if not found:
        raise UsageError(
            f"[search] {key}: the target has {', '.join(there) or 'none'}, and what is "
            f"asked for is {', '.join(asked) or 'nothing'}"
        )
    return found
