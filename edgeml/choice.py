"""Gates and choice: which candidates hold the budget, and which of them ships.

The rules, in order:

1. A candidate *fits* when no limit of the budget is missed. Where float32 fits, one
   that is slower than it is out: it has nothing to give.
2. A quantized candidate is *outclassed* when another fitting quantized one, not
   larger, is more accurate by more than a tenth of a point.
3. Of the rest the fastest wins. Latencies within ``SAME_SPEED`` of it count as equal:
   among these the most accurate wins, then fewer flips, then fewer bytes, then name.

Where the target's device is not here nothing is timed: instead of rule 3 the profile's
order of precisions decides then, and the most accurate of the first one ships.

All of it is a pure function of the records, so equal measurements give equal choices.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

from .outcome import Candidate, Evaluation, Miss
from .recipes.recipe import Budget, MetricOptions

SAME_SPEED = 1.10
"""Two medians this close are one: the machine's noise is not a reason to choose."""
SLOWER = 1.02
OUTCLASSED = 0.001
"""A tenth of a point for metrics from 0 to 1; relative for unbounded ones."""
SAME_SIZE = 1.02
DEFAULT_DROP = 0.01
"""One point for metrics from 0 to 1; for errors this share of the float value."""
FLOATS = frozenset({"fp32", "fp16"})
OF_DEVICE = ("max_latency_ms", "max_memory_bytes", "max_fallback_share")
"""Limits that only the target's device, or a machine of its kind, can tell about."""


def score(candidate: Candidate, metric: MetricOptions) -> float:
    """The recipe's metric of a candidate, turned so that higher is better."""
    evaluation = candidate.evaluation
    assert evaluation is not None, "only evaluated candidates are scored"
    return _signed(evaluation.metrics[metric.name], metric)


def allowed_drop(oracle: Evaluation, budget: Budget, metric: MetricOptions) -> float:
    """The most that the metric may get worse; a recipe that says nothing has a limit.

    Without one the fastest candidate would ship, however wrong it is.
    """
    if budget.max_accuracy_drop is not None:
        return budget.max_accuracy_drop
    value = abs(oracle.metrics[metric.name])
    return DEFAULT_DROP * (value if metric.better == "lower" else 1.0)


def gate(
    candidate: Candidate,
    oracle: Evaluation,
    budget: Budget,
    metric: MetricOptions,
    unchecked: Collection[str] = (),
) -> tuple[Miss, ...]:
    """Every limit that the candidate misses, with the guilty slices or layers.

    A limit whose value was not measured is missed too: nothing passes unseen, but
    for the ``unchecked`` ones, which the outcome names.
    """
    evaluation = candidate.evaluation
    assert evaluation is not None, "only evaluated candidates are gated"
    layers = tuple(error.node for error in candidate.layer_errors[:3])
    drop = _signed(oracle.metrics[metric.name], metric) - score(candidate, metric)
    slice_drop, worst = _worst_slice(evaluation, oracle, metric)
    memory, coverage = candidate.peak_memory_bytes, candidate.coverage
    p50 = candidate.latency.p50_ms if candidate.latency else None
    measured: list[tuple[str, float | None, float | None, tuple[str, ...]]] = [
        ("max_accuracy_drop", allowed_drop(oracle, budget, metric), drop, layers),
        ("max_slice_drop", budget.max_slice_drop, slice_drop, worst),
        ("max_flip_rate", budget.max_flip_rate, evaluation.flip_rate, layers),
        ("max_latency_ms", budget.max_latency_ms, p50, ()),
        ("max_size_bytes", budget.max_size_bytes, candidate.size_bytes, ()),
        ("max_memory_bytes", budget.max_memory_bytes, memory, ()),
        (
            "max_fallback_share", budget.max_fallback_share,
            coverage.fallback_share if coverage else None,
            coverage.fallback[:3] if coverage else (),
        ),
    ]  # fmt: skip
    return tuple(
        Miss(limit, allowed, None if value is None else float(value), guilty)
        for limit, allowed, value, guilty in measured
        if limit not in unchecked
        and allowed is not None
        and not (value is not None and value <= allowed + 1e-12)
    )


def choose(
    candidates: Sequence[Candidate],
    metric: MetricOptions,
    preference: Sequence[str] = (),
) -> tuple[Candidate | None, str]:
    """The candidate that ships, and why in one sentence.

    ``candidates`` carry ``status`` "fits" where the gates were passed. ``preference``
    is the profile's order of precisions, for candidates that were not timed.
    """
    fitting = [one for one in candidates if one.status == "fits"]
    if not fitting:
        return None, _why_none(candidates, metric)
    if any(one.latency is None for one in fitting):
        return _untimed(fitting, metric, preference)
    rest = [
        one for one in fitting
        if not any(_outclasses(other, one, metric) for other in fitting)
    ]  # fmt: skip
    fastest = min(map(_p50, rest))
    equal = [one for one in rest if _p50(one) <= fastest * SAME_SPEED]
    best = min(equal, key=lambda one: _rank(one, metric))
    why = (
        "the only candidate that holds the budget"
        if len(fitting) == 1
        else f"fastest of {len(fitting)} candidates that hold the budget"
    )
    if len(equal) > 1:
        why += f", most accurate of {len(equal)} equally fast ones"
    return best, why


def _untimed(
    fitting: Sequence[Candidate], metric: MetricOptions, preference: Sequence[str]
) -> tuple[Candidate, str]:
    order = {precision: place for place, precision in enumerate(preference)}
    best = min(
        fitting,
        key=lambda one: (
            order.get(one.precision, len(order)), *_rank(one, metric),
        ),
    )  # fmt: skip
    if len(fitting) == 1:
        return best, "the only candidate that holds the budget; not timed here"
    why = f"first of {len(fitting)} candidates that hold the budget, not timed here"
    if preference:
        why += f": such devices are fastest in {', then '.join(preference)}"
    return best, why


def is_slower(one: Candidate) -> bool:
    """Whether a candidate is slower than float32, measured in turn with it."""
    return (
        one.precision != "fp32"
        and one.latency is not None
        and one.latency.p50_ms > one.latency.float_p50_ms * SLOWER
    )


def float_fits(candidates: Sequence[Candidate]) -> bool:
    """Whether float32 itself could ship: only then a slower one has no use."""
    return any(one.precision == "fp32" and one.status == "fits" for one in candidates)


def mark_slower(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Fitting candidates that are slower than a fitting float32 one marked as such."""
    if not float_fits(candidates):
        return list(candidates)
    return [
        replace(
            one,
            status="slower",
            reason=f"{one.latency.p50_ms:.3g} ms, "
            f"float32 {one.latency.float_p50_ms:.3g} ms in turn",
        )
        if one.status == "fits" and one.latency is not None and is_slower(one)
        else one
        for one in candidates
    ]


def _why_none(candidates: Sequence[Candidate], metric: MetricOptions) -> str:
    """Which limits the nearest candidate misses, by how much, and who is guilty."""
    missed = [one for one in candidates if one.status == "missed"]
    if not missed:
        return "no candidate could be made that is fit to ship"
    nearest = min(missed, key=lambda one: (len(one.misses), -score(one, metric)))
    misses = "; ".join(miss.text for miss in nearest.misses)
    return f"no candidate holds the budget; nearest is {nearest.name}: {misses}"


def _outclasses(other: Candidate, one: Candidate, metric: MetricOptions) -> bool:
    mine = score(one, metric)
    unit = OUTCLASSED * max(1.0, abs(mine))
    return (
        not FLOATS & {other.precision, one.precision}
        and other.size_bytes <= one.size_bytes * SAME_SIZE
        and score(other, metric) - mine > unit + 1e-12
    )


def _rank(one: Candidate, metric: MetricOptions) -> tuple[float, float, int, str]:
    flips = one.evaluation.flip_rate if one.evaluation else None
    return (-score(one, metric), flips or 0.0, one.size_bytes, one.name)


def _p50(one: Candidate) -> float:
    assert one.latency is not None, "a fitting candidate was timed"
    return one.latency.p50_ms


def _signed(value: float, metric: MetricOptions) -> float:
    return value if metric.better == "higher" else -value


def _worst_slice(
    evaluation: Evaluation, oracle: Evaluation, metric: MetricOptions
) -> tuple[float | None, tuple[str, ...]]:
    drops = [
        (
            _signed(oracle.slices[column][value], metric)
            - _signed(evaluation.slices[column][value], metric),
            f"{column}={value}",
        )
        for column in oracle.slices
        for value in oracle.slices[column]
        if value in evaluation.slices.get(column, {})
    ]
    if not drops:
        return 0.0, ()
    drops.sort(reverse=True)
    return drops[0][0], tuple(name for _, name in drops[:3])
