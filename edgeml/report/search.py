"""What the page says of a search: its front in a plot, and every trial in a row.

Nothing here is markup; the template escapes every string.
"""

from typing import Any

from markupsafe import Markup

from ..outcome import SearchOutcome, SearchTrial
from . import words
from .plots import Bounds, Point, candidates_plot
from .sections import Row, View

STATUS = {
    "chosen": "best",
    "fits": "holds budget",
    "missed": "misses budget",
    "refuted": "misses on all samples",
    "pruned": "given up",
    "failed": "failed",
}
STYLE = {"refuted": "missed", "pruned": "skipped"}
"""Trials that look like candidates of another status."""
NAMED = 24
"""A plot with more points names those on the front only."""


def searched(one: View, sizes: tuple[tuple[str, int, int], ...], ident: str) -> Any:
    """The search of a target; None where there was none."""
    search = one.target.search
    if search is None:
        return None
    metric = one.outcome.metric
    return {
        "record": search,
        "float": words.value_of(metric, search.float_value),
        "tried": len(search.trials),
        "front": sum(trial.front for trial in search.trials),
        "kinds": _kinds(search),
        "space": [
            {"name": axis, "value": ", ".join(map(_value, values))}
            for axis, values in search.space.items()
            if len(values) > 1
        ],
        "rows": [_row(one, trial) for trial in search.trials],
        "plots": [
            {
                "size": name,
                "svg": _plot(one, search, f"{ident}-s-{name}", width, height),
            }
            for name, width, height in sizes
            if _points(search)
        ],
    }


def _kinds(search: SearchOutcome) -> dict[str, int]:
    """How many trials came to what."""
    counts = {
        word: sum(trial.status == status for trial in search.trials)
        for status, word in STATUS.items()
    }
    return {word: count for word, count in counts.items() if count}


def _row(one: View, trial: SearchTrial) -> Row:
    metric = one.outcome.metric
    timed = trial.latency_ms is not None
    return {
        "number": trial.number + 1,
        "name": trial.name,
        "candidate": trial.candidate,
        "kept": trial.kept_layers,
        "style": STYLE.get(trial.status, trial.status),
        "word": STATUS[trial.status],
        "front": trial.front,
        "score": words.value_of(metric, trial.value),
        "flips": words.percent(trial.flip_rate),
        "latency": words.milliseconds(trial.latency_ms),
        "bound_ms": "" if timed else words.milliseconds(trial.predicted_latency_ms),
        "size": words.size(trial.size_bytes),
        "bound_size": ""
        if trial.size_bytes is not None
        else words.size(trial.predicted_size_bytes),
        "reason": trial.reason if not trial.misses or trial.value is None else "",
        "misses": [
            {
                "name": words.LIMITS.get(miss.limit, miss.limit),
                "measured": words.limit_value(miss.limit, miss.measured, metric),
                "allowed": words.limit_value(miss.limit, miss.allowed, metric),
            }
            for miss in trial.misses
            if trial.value is not None
        ],
    }


def _points(search: SearchOutcome) -> list[Point]:
    return [
        Point(
            trial.number + 1, trial.name, STYLE.get(trial.status, trial.status),
            trial.latency_ms, trial.value, trial.size_bytes,
        )
        for trial in search.trials
        if trial.latency_ms is not None
        and trial.value is not None
        and trial.size_bytes is not None
    ]  # fmt: skip


def _plot(
    one: View, search: SearchOutcome, ident: str, width: int, height: int
) -> Markup:
    points = _points(search)
    bounds = Bounds(
        oracle=search.float_value,
        worst_score=search.worst_value,
        max_latency_ms=one.outcome.budget.get("max_latency_ms"),
        better=one.outcome.better,
    )
    front = {trial.number + 1 for trial in search.trials if trial.front}
    return candidates_plot(
        points, bounds, lambda value: words.value_of(one.outcome.metric, value),
        ident=ident, width=width, height=height,
        named=front if len(points) > NAMED else None,
    )  # fmt: skip


def _value(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
