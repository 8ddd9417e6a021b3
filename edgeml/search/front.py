"""What a search ends with: the front of its trials, the choice, the nearest miss.

Pure functions of the records, so equal measurements give equal choices.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..choice import choose, is_slower
from ..outcome import Candidate, Evaluation, Latency, Miss, SearchTrial
from ..recipes.recipe import MetricOptions

SMALL = {"_ms": 1.0, "_bytes": 1.0}
"""What a limit of 0 is missed in parts of, by the end of its name; else 0.01."""


def excess(miss: Miss) -> float:
    """By how much a limit is missed, in parts of it; 1 where it was not measured."""
    if miss.measured is None:
        return 1.0
    ends = (unit for end, unit in SMALL.items() if miss.limit.endswith(end))
    return (miss.measured - miss.allowed) / (miss.allowed or next(ends, 0.01))


def missed_by(trial: SearchTrial) -> float:
    """All excesses of a trial together; 0 for one that holds the budget."""
    return sum(map(excess, trial.misses))


def told(miss: Miss) -> str:
    """A miss in words, with how far it is."""
    if miss.measured is None or not miss.allowed:
        return miss.text
    return f"{miss.text}: {excess(miss) * 100:,.3g} % over"


def with_front(
    trials: Sequence[SearchTrial], metric: MetricOptions
) -> tuple[SearchTrial, ...]:
    """The trials, those marked that no other beats: the Pareto front.

    In metric, latency and size at once, over what was measured in all three.
    """
    done = [(one, _objectives(one, metric)) for one in trials if is_measured(one)]
    front = {
        one.number
        for one, mine in done
        if not any(_dominates(other, mine) for _, other in done)
    }
    return tuple(replace(one, front=one.number in front) for one in trials)


def ranked(
    trials: Sequence[SearchTrial], metric: MetricOptions
) -> list[tuple[SearchTrial, str]]:
    """The trials that hold the budget, best first, each with why it is before the rest.

    By the rules that choose among the candidates of a build (:mod:`edgeml.choice`).
    """
    rest = {one.name: one for one in useful(trials, metric)}
    found = []
    while rest:
        candidates = [_candidate(one, metric) for one in rest.values()]
        best, why = choose(candidates, metric)
        assert best is not None, "they fit, so one is chosen"
        found.append((rest.pop(best.name), why))
    return found


def useful(trials: Sequence[SearchTrial], metric: MetricOptions) -> list[SearchTrial]:
    """The trials that hold the budget and are not slower than their own float32.

    A build of such a point would ship the float32 artifact, which is a point too.
    """
    fits = [one for one in trials if one.status == "fits"]
    floats = {_network(one) for one in fits if one.precision == "fp32"}
    return [
        one
        for one in fits
        if _network(one) not in floats or not is_slower(_candidate(one, metric))
    ]


def _network(trial: SearchTrial) -> tuple[Any, Any]:
    return trial.point["prune"], trial.point["distill"]


def nearest(trials: Sequence[SearchTrial]) -> SearchTrial | None:
    """The trial that misses the budget by least; measured ones before predicted."""
    missed = [one for one in trials if one.misses]
    return min(
        missed,
        key=lambda one: (not is_measured(one), missed_by(one), one.number),
        default=None,
    )


def is_measured(trial: SearchTrial) -> bool:
    """Whether metric, latency and size are all known."""
    return None not in (trial.value, trial.latency_ms, trial.size_bytes)


def objectives(trial: SearchTrial, metric: MetricOptions) -> tuple[float, float, float]:
    """Metric (higher is better), milliseconds and bytes of a measured trial."""
    assert trial.value is not None and trial.latency_ms is not None
    assert trial.size_bytes is not None
    sign = 1.0 if metric.better == "higher" else -1.0
    return sign * trial.value, trial.latency_ms, float(trial.size_bytes)


def _objectives(trial: SearchTrial, metric: MetricOptions) -> tuple[float, ...]:
    """All to be low."""
    score, *rest = objectives(trial, metric)
    return (-score, *rest)


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _candidate(trial: SearchTrial, metric: MetricOptions) -> Candidate:
    """A trial as the rules of choice see it."""
    _, latency_ms, size = objectives(trial, metric)
    assert trial.value is not None and trial.float_latency_ms is not None
    return Candidate(
        name=trial.name,
        precision=trial.precision,
        status="fits",
        size_bytes=int(size),
        evaluation=Evaluation(
            {metric.name: trial.value}, 0, "", flip_rate=trial.flip_rate
        ),
        latency=Latency(
            latency_ms, latency_ms, trial.float_latency_ms, threads=1, machine="",
            runs=0,
        ),
    )  # fmt: skip
