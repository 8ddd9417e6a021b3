"""Recipes: what to compile, from TOML; every mistake reported at once.

The keys are in :mod:`edgeml.recipes.schema`; here is what they become.
"""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from calibration.dataset import DataSource

from ..candidate import QuantizeOptions
from ..errors import RecipeError
from .keys import Mistake, Place
from .lines import KeyPath, key_lines
from .schema import ERRORS, LABELLED, METRICS, RANDOM, RECIPE
from .verbs import trains

RECIPE_BYTES_MAX = 256 << 10


@dataclass(frozen=True)
class ModelSource:
    """``source`` is a path or ``module:factory``; paths are relative to the recipe."""

    source: str
    name: str
    version: str
    weights: str | None = None
    inputs: dict[str, list[int]] = field(default_factory=dict)
    """Input name → shape, to pin variable dimensions (or for a torch factory)."""
    release_counter: int = 0


@dataclass(frozen=True)
class DataOptions:
    """The three splits and how the calibration set is drawn from the first."""

    calibration: DataSource
    validation: DataSource
    train: DataSource | None = None
    sampler: str = "stratified"
    samples: int = 200


@dataclass(frozen=True)
class MetricOptions:
    """``name`` is a built-in metric or ``module:function``."""

    name: str
    output: str | None = None
    """The model output it reads; None: the first."""
    better: str = "higher"
    slices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Budget:
    """The limits a build must hold; None: no limit.

    Accuracy drops are in the metric's own unit (0.01 = one point of top-1).
    """

    max_accuracy_drop: float | None = None
    max_slice_drop: float | None = None
    max_flip_rate: float | None = None
    max_latency_ms: float | None = None
    max_size_bytes: int | None = None
    max_memory_bytes: int | None = None
    max_fallback_share: float | None = None


@dataclass(frozen=True)
class PassOptions:
    """One ``[[pass]]``: its verb and parameters."""

    verb: str
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SearchOptions:
    """The ``[search]`` table: how long to look, and among what.

    An empty tuple stands for what the recipe gives reason to try
    (:mod:`edgeml.search.space`).
    """

    trials: int = 30
    minutes: float = 0.0
    """Of trials, over all runs of the same search; 0: no limit."""
    prune: tuple[float, ...] = ()
    distill: tuple[bool, ...] = ()
    precisions: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    samples: tuple[int, ...] = ()
    keep: tuple[int, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """A whole recipe; ``folder`` is what its relative paths are relative to."""

    folder: Path
    model: ModelSource
    data: DataOptions
    metric: MetricOptions
    budget: Budget
    targets: tuple[str, ...]
    seed: int = 0
    preprocess: tuple[dict[str, Any], ...] = ()
    preprocess_input: str | None = None
    postprocess: tuple[dict[str, Any], ...] = ()
    labels: tuple[str, ...] = ()
    passes: tuple[PassOptions, ...] = ()
    quantize: QuantizeOptions = field(default_factory=QuantizeOptions)
    search: SearchOptions | None = None
    """None: the recipe has no such table."""


def read_recipe(path: Path) -> Recipe:
    """The recipe in ``path``.

    Raises:
        RecipeError: not readable, not TOML, or wrong. The text has one line per
            mistake, ``recipe.toml:LINE: key: what is wrong``, in the order of lines.
    """
    content = _text(path)
    try:
        value = tomllib.loads(content)
        lines = key_lines(content)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(_syntax(path, content, error)) from error
    except RecursionError as error:
        raise RecipeError(f"{path}:1: not a recipe: nested too deeply") from error
    place = Place(path.parent, [])
    found = RECIPE.read(value, place)
    if not place.mistakes:
        recipe = _recipe(path.parent, found)
        place.mistakes.extend(_contradictions(recipe, found))
    if place.mistakes:
        raise RecipeError(_report(path, place.mistakes, lines))
    return recipe


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise RecipeError(
            f"{path}: the recipe cannot be read: {error.strerror}"
        ) from error
    if len(raw) > RECIPE_BYTES_MAX:
        raise RecipeError(
            f"{path}: {len(raw)} bytes; a recipe has at most {RECIPE_BYTES_MAX}"
        )
    try:
        return raw.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise RecipeError(f"{path}:{line}: not UTF-8 text") from error


def _syntax(path: Path, content: str, error: Exception) -> str:
    found = re.search(r" \(at line (\d+), column (\d+)\)", str(error))
    last = len(content.splitlines()) or 1
    line = found[1] if found else last
    column = f" (column {found[2]})" if found else ""
    reason = re.sub(r" \(at .*\)$", "", str(error))
    return f"{path}:{line}: not TOML: {reason}{column}"


def _report(path: Path, mistakes: list[Mistake], lines: dict[KeyPath, int]) -> str:
    placed = sorted(
        (_line(mistake.path, lines), mistake.key, mistake.text) for mistake in mistakes
    )
    return "\n".join(f"{path}:{line}: {key}: {text}" for line, key, text in placed)


def _line(path: KeyPath, lines: dict[KeyPath, int]) -> int:
    """The line of ``path``, or of the nearest table around it."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def _recipe(folder: Path, found: dict[str, Any]) -> Recipe:
    preprocess, postprocess = found["preprocess"], found["postprocess"]
    metric = found["metric"]
    better = "lower" if metric["name"] in ERRORS else "higher"
    return Recipe(
        folder=folder,
        model=ModelSource(
            **{**found["model"], "inputs": found["model"]["inputs"] or {}}
        ),
        data=_data(found["data"], metric["slices"]),
        metric=MetricOptions(**{**metric, "better": metric["better"] or better}),
        budget=Budget(**found["budget"]),
        targets=found["build"]["targets"],
        seed=found["build"]["seed"],
        preprocess=preprocess.get("steps", ()),
        preprocess_input=preprocess.get("input"),
        postprocess=postprocess.get("steps", ()),
        labels=postprocess.get("labels", ()),
        passes=tuple(
            PassOptions(options.pop("verb"), options)
            for options in map(dict, found["pass"])
        ),
        quantize=QuantizeOptions(**found["quantize"]),
        search=found["search"] and SearchOptions(**found["search"]),
    )


def _data(data: dict[str, Any], slices: tuple[str, ...]) -> DataOptions:
    def whole(source: DataSource) -> DataSource:
        """``source`` with what all splits share."""
        return replace(
            source,
            inputs=source.inputs or data["inputs"],
            label=source.label or data["label"],
            slices=source.slices or slices,
        )

    return DataOptions(
        calibration=whole(data["calibration"]),
        validation=whole(data["validation"]),
        train=data["train"] and whole(data["train"]),
        sampler=data["sampler"],
        samples=data["samples"],
    )


def _contradictions(recipe: Recipe, found: dict[str, Any]) -> Iterator[Mistake]:
    """Mistakes between keys that are right each by itself."""
    data, metric, model = recipe.data, recipe.metric, recipe.model
    splits = {"calibration": data.calibration, "validation": data.validation}
    made = [key for key, one in splits.items() if one.location.startswith(RANDOM)]
    if made and metric.name in LABELLED:
        yield Mistake(
            ("metric", "name"),
            f"{metric.name} needs labels and random samples have none; "
            "expected agreement, or real data",
        )
    if made and recipe.preprocess:
        yield Mistake(
            ("preprocess", "steps"),
            "random samples are made as the model's inputs; expected real data, "
            "or no steps",
        )
    if not made and data.calibration.location == data.validation.location:
        yield Mistake(
            ("data", "validation"),
            "the same samples as data.calibration; accuracy is never judged on them, "
            "expected a split of its own",
        )
    if (
        metric.name in METRICS
        and metric.better
        != MetricOptions(
            metric.name, better="lower" if metric.name in ERRORS else "higher"
        ).better
    ):
        yield Mistake(
            ("metric", "better"), f"{metric.name} is not better when {metric.better}"
        )
    if recipe.budget.max_slice_drop is not None and not metric.slices:
        yield Mistake(
            ("budget", "max_slice_drop"),
            "there are no slices to hold it; expected metric.slices",
        )
    for index, one in enumerate(recipe.passes):
        if trains(one.verb, one.parameters) and data.train is None:
            yield Mistake(
                ("pass", index, "verb"),
                f"{one.verb} trains, and there is no [data] train; expected training "
                "samples, or epochs = 0",
            )
    yield from _untrainable(recipe)
    if model.weights is not None and ":" not in model.source:
        yield Mistake(
            ("model", "weights"),
            f"go with a module:factory; {model.source!r} has its own weights",
        )


def _untrainable(recipe: Recipe) -> Iterator[Mistake]:
    """What a search would train without samples for it."""
    search = recipe.search
    if search is None or recipe.data.train is not None:
        return
    for key, wanted in (("prune", any(search.prune)), ("distill", any(search.distill))):
        if wanted:
            yield Mistake(
                ("search", key),
                f"to {key} is to train, and there is no [data] train; expected "
                f"training samples, or no {key}",
            )
