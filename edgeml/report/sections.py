"""What the page says of one target: plain values, ready to be laid out.

Nothing here is markup; the template escapes every string.
"""

from dataclasses import dataclass
from typing import Any

from ..choice import SAME_SPEED
from ..outcome import BuildOutcome, Candidate, Evaluation, TargetOutcome
from . import words
from .document import chosen_candidate, metric_change
from .interval import Change
from .words import change_of, limit_value, milliseconds, percent, size, value_of

LAYERS_SHOWN = 12
CLASSES_SHOWN = 20
CONFUSIONS_SHOWN = 15
STATUS = {
    "chosen": "ships",
    "fits": "holds budget",
    "missed": "misses budget",
    "slower": "slower",
    "skipped": "skipped",
    "failed": "failed",
}

Row = dict[str, Any]


@dataclass(frozen=True)
class View:
    """One target of a build, and the candidate that its details are about.

    ``subject`` is the chosen candidate; where nothing ships, the nearest one.
    """

    outcome: BuildOutcome
    target: TargetOutcome
    subject: Candidate | None

    @property
    def sign(self) -> float:
        """1 where higher is better, else -1."""
        return 1.0 if self.outcome.better == "higher" else -1.0

    @property
    def evaluation(self) -> Evaluation | None:
        """What the subject did on the validation data."""
        return self.subject.evaluation if self.subject else None


def view(outcome: BuildOutcome, target: TargetOutcome) -> View:
    """The view of a target."""
    return View(outcome, target, chosen_candidate(target) or _nearest(outcome, target))


def ships(target: TargetOutcome) -> bool:
    """Whether a bundle was written."""
    return target.chosen is not None and not target.refusals


def tiles(one: View) -> list[Row]:
    """The figures at a glance: accuracy, latency, size, changed answers."""
    subject, metric = one.subject, one.outcome.metric
    if subject is None or subject.evaluation is None:
        return []
    value = subject.evaluation.metrics.get(metric)
    base = words.float_candidate(one.target)
    rows = [
        {
            "name": metric,
            "value": value_of(metric, value),
            "change": _change_text(one, subject.evaluation),
            "note": f"float {value_of(metric, one.outcome.oracle.metrics.get(metric))}"
            f" · {subject.evaluation.samples} samples",
        }
    ]
    if subject.latency:
        fast, slow = subject.latency.p50_ms, subject.latency.float_p50_ms
        rows.append({
            "name": "latency, median",
            "value": milliseconds(fast),
            "change": words.speed(slow, fast),
            "note": f"fp32 {milliseconds(slow)} · {_threads(subject.latency.threads)}",
        })  # fmt: skip
    ratio = words.factor(base.size_bytes if base else None, subject.size_bytes)
    rows.append({
        "name": "artifact size",
        "value": size(subject.size_bytes),
        "change": words.compared(ratio, "smaller", "larger"),
        "note": f"fp32 {size(base.size_bytes if base else None)}",
    })  # fmt: skip
    if subject.evaluation.flip_rate is not None:
        count = round(subject.evaluation.flip_rate * subject.evaluation.samples)
        rows.append({
            "name": "changed answers",
            "value": percent(subject.evaluation.flip_rate),
            "change": f"{count} of {subject.evaluation.samples}",
            "note": flip_effect(subject.evaluation),
        })  # fmt: skip
    return rows


def certainty(one: View) -> str:
    """How sure the change of the metric is, in a sentence."""
    if one.evaluation is None:
        return ""
    metric = one.outcome.metric
    change = metric_change(one.outcome, one.evaluation, metric)
    if change is None:
        return (
            f"For {metric} no interval is given: it is not a share of right answers "
            "with a known number of changed ones."
        )
    low, high = (change_of(metric, end) for end in (change.low, change.high))
    if not change.sure:
        tail = "so it may be none at all"
    else:
        tail = "so it is a gain" if change.low > 0 else "so it is a loss"
    return f"95 % interval of the change: {low} to {high}, {tail}; {change.method}."


def candidate_rows(one: View) -> list[Row]:
    """Every candidate in build order, numbered as in the plot."""
    return [
        _candidate_row(one, number, candidate)
        for number, candidate in enumerate(one.target.candidates, 1)
    ]


def budget_rows(one: View) -> list[Row]:
    """Every limit of the recipe with the subject's measured value."""
    if one.subject is None or one.subject.evaluation is None:
        return []
    measured = _measured(one, one.subject, one.subject.evaluation)
    rows = []
    for limit, allowed in one.outcome.budget.items():
        if allowed is None:
            continue
        value = measured.get(limit)
        unchecked = limit in one.target.unchecked
        rows.append({
            "name": words.LIMITS.get(limit, limit),
            "limit": limit,
            "allowed": limit_value(limit, allowed, one.outcome.metric),
            "measured": "not checked here"
            if unchecked
            else limit_value(limit, value, one.outcome.metric),
            "unchecked": unchecked,
            "holds": value is not None and value <= allowed + 1e-12,
            "used": min(1.0, max(0.0, value / allowed)) if value and allowed else 0.0,
        })  # fmt: skip
    return rows


def slice_tables(one: View) -> list[Row]:
    """One table per slice column: value, samples, float, this artifact, change."""
    if one.evaluation is None:
        return []
    metric, tables = one.outcome.metric, []
    drops = slice_drops(one, one.evaluation)
    worst = max(drops.values(), default=0.0)
    for column, values in one.evaluation.slices.items():
        before = one.outcome.oracle.slices.get(column, {})
        counts = one.evaluation.slice_counts.get(column, {})
        rows = [
            {
                "value": value,
                "samples": counts.get(value),
                "before": value_of(metric, before.get(value)),
                "after": value_of(metric, score),
                "change": change_of(metric, score - before[value])
                if value in before
                else words.NONE,
                "worst": worst > 0 and drops.get((column, value)) == worst,
            }
            for value, score in values.items()
        ]
        tables.append({"column": column, "rows": rows})
    return tables


def slice_drops(one: View, evaluation: Evaluation) -> dict[tuple[str, str], float]:
    """How much each slice loses against float, in the metric's unit."""
    oracle = one.outcome.oracle.slices
    return {
        (column, value): one.sign * (oracle[column][value] - score)
        for column, values in evaluation.slices.items()
        for value, score in values.items()
        if value in oracle.get(column, {})
    }


def confusion(one: View) -> Row | None:
    """The confusion matrix with shares per row; over 20 classes the top confusions."""
    if one.evaluation is None or not one.evaluation.confusion:
        return None
    matrix, labels = one.evaluation.confusion, one.outcome.labels
    names = [words.answer(labels, n) for n in range(len(matrix))]
    wrong = sorted(
        ((-count, row, column) for row, counts in enumerate(matrix)
         for column, count in enumerate(counts) if row != column and count),
    )  # fmt: skip
    top = [
        {
            "label": names[row], "answer": words.answer(labels, column),
            "count": -count, "of": sum(matrix[row]),
        }
        for count, row, column in wrong[:CONFUSIONS_SHOWN]
    ]  # fmt: skip
    if len(matrix) > CLASSES_SHOWN:
        return {"names": names, "top": top, "rows": []}
    before = one.outcome.oracle.confusion
    rows = [
        {
            "name": names[n],
            "cells": [
                {"count": count, "share": count / (sum(counts) or 1), "hit": n == m}
                for m, count in enumerate(counts)
            ],
            "recall": percent(_recall(counts, n)),
            "recall_float": percent(_recall(before[n], n)) if n < len(before) else "",
        }
        for n, counts in enumerate(matrix)
    ]
    return {"names": names, "top": top, "rows": rows}


def flips(one: View) -> list[Row]:
    """Changed answers as examples: lost first, then gained, then other changes."""
    if one.evaluation is None:
        return []
    labels = one.outcome.labels
    order = {"lost": 0, "gained": 1, "other": 2}
    rows = [
        {
            "sample": flip.sample,
            "label": words.answer(labels, flip.label),
            "before": words.answer(labels, flip.before),
            "after": words.answer(labels, flip.after),
            "effect": _effect(flip.label, flip.before, flip.after),
        }
        for flip in one.evaluation.flips
    ]
    return sorted(rows, key=lambda row: (order[row["effect"]], row["sample"]))


def flip_effect(evaluation: Evaluation) -> str:
    """What the changed answers did, where all of them are among the examples."""
    if evaluation.flip_rate is None or not evaluation.flips:
        return "against float"
    found = [_effect(one.label, one.before, one.after) for one in evaluation.flips]
    if round(evaluation.flip_rate * evaluation.samples) != len(found):
        return "against float"
    other = f", {found.count('other')} otherwise" if "other" in found else ""
    return f"{found.count('lost')} lost, {found.count('gained')} gained{other}"


def layer_tables(one: View) -> list[Row]:
    """Error per layer of the subject and of the worst candidate that is refused."""
    chosen = [one.subject] if one.subject else []
    rejected = [
        candidate
        for candidate in one.target.candidates
        if candidate.status == "missed" and candidate.layer_errors
        and candidate is not one.subject
    ]  # fmt: skip
    rejected.sort(key=lambda c: (-_drop(one, c), c.name))
    tables = []
    for candidate in chosen + rejected[:1]:
        errors = [e for e in candidate.layer_errors if e.added_db == e.added_db]
        if not errors:
            continue
        errors.sort(key=lambda error: (-error.added_db, error.node))
        top = max(12.0, errors[0].added_db)
        tables.append({
            "name": candidate.name,
            "status": candidate.status,
            "word": STATUS[candidate.status],
            "total": len(errors),
            "kept": candidate.kept_layers,
            "rows": [
                {
                    "node": error.node,
                    "op": error.op,
                    "sqnr": f"{error.sqnr_db:.1f}" if error.sqnr_db < 1e4 else "exact",
                    "added": f"{words.signed(error.added_db, 1)}",
                    "share": min(1.0, max(0.0, error.added_db / top)),
                }
                for error in errors[:LAYERS_SHOWN]
            ],
        })  # fmt: skip
    return tables


def _candidate_row(one: View, number: int, candidate: Candidate) -> Row:
    evaluation, latency = candidate.evaluation, candidate.latency
    metric, oracle = one.outcome.metric, one.outcome.oracle
    value = evaluation.metrics.get(metric) if evaluation else None
    before = oracle.metrics.get(metric)
    change = value - before if value is not None and before is not None else None
    ratio = words.factor(latency.float_p50_ms, latency.p50_ms) if latency else None
    # The limits that were missed are listed one by one, so the reason is theirs.
    reason = "" if candidate.misses else candidate.reason
    if candidate.status == "chosen":
        reason = one.target.choice_reason
    elif candidate.status == "fits" and not reason:
        reason = _behind(one, candidate)
    return {
        "number": number,
        "name": candidate.name,
        "precision": candidate.precision,
        "status": candidate.status,
        "word": STATUS[candidate.status],
        "score": value_of(metric, value),
        "change": change_of(metric, change),
        "flips": percent(evaluation.flip_rate) if evaluation else words.NONE,
        "p50": milliseconds(latency.p50_ms) if latency else words.NONE,
        "p99": milliseconds(latency.p99_ms) if latency else words.NONE,
        "ratio": "" if candidate.precision == "fp32" else words.times(ratio),
        "size": size(candidate.size_bytes or None),
        "memory": size(candidate.peak_memory_bytes),
        "reason": reason,
        "kept": candidate.kept_layers,
        "misses": [
            {
                "name": words.LIMITS.get(miss.limit, miss.limit),
                "measured": limit_value(miss.limit, miss.measured, metric),
                "allowed": limit_value(miss.limit, miss.allowed, metric),
            }
            for miss in candidate.misses
        ],
        "guilty": list(dict.fromkeys(g for m in candidate.misses for g in m.guilty)),
    }


def _behind(one: View, candidate: Candidate) -> str:
    """Why a candidate that holds the budget was not chosen."""
    chosen = chosen_candidate(one.target)
    if chosen is None or not (chosen.latency and candidate.latency):
        return ""
    ratio = candidate.latency.p50_ms / chosen.latency.p50_ms
    if ratio > SAME_SPEED:
        return f"{words.times(ratio)} the latency of the choice"
    behind = _drop(one, candidate) - _drop(one, chosen)
    if behind > 0:
        text = change_of(one.outcome.metric, -behind)
        return f"about as fast as the choice, {text}"
    return "about as fast and as good as the choice"


def _measured(
    one: View, candidate: Candidate, evaluation: Evaluation
) -> dict[str, float | None]:
    drops = slice_drops(one, evaluation)
    return {
        "max_accuracy_drop": _drop(one, candidate),
        "max_slice_drop": max(drops.values(), default=0.0),
        "max_flip_rate": evaluation.flip_rate,
        "max_latency_ms": candidate.latency.p50_ms if candidate.latency else None,
        "max_size_bytes": candidate.size_bytes,
        "max_memory_bytes": candidate.peak_memory_bytes,
        "max_fallback_share": candidate.coverage.fallback_share
        if candidate.coverage
        else None,
    }


def _nearest(outcome: BuildOutcome, target: TargetOutcome) -> Candidate | None:
    """Of a refused target: fewest limits missed, then least loss; compressed ones."""
    one = View(outcome, target, None)
    measured = [c for c in target.candidates if c.evaluation]
    small = [c for c in measured if c.precision not in {"fp32", "fp16"}] or measured
    return min(
        small, key=lambda c: (len(c.misses), _drop(one, c), c.name), default=None
    )


def _drop(one: View, candidate: Candidate) -> float:
    metric = one.outcome.metric
    if candidate.evaluation is None or metric not in candidate.evaluation.metrics:
        return 0.0
    value = candidate.evaluation.metrics[metric]
    return one.sign * (one.outcome.oracle.metrics.get(metric, value) - value)


def _change_text(one: View, evaluation: Evaluation) -> str:
    metric = one.outcome.metric
    before, after = one.outcome.oracle.metrics.get(metric), evaluation.metrics[metric]
    change: Change | None = metric_change(one.outcome, evaluation, metric)
    text = change_of(metric, None if before is None else after - before)
    if change is None:
        return text
    half = (change.high - change.low) / 2
    return f"{text} ± {half * 100:.{words.point_digits(half)}f}"


def _effect(label: Any, before: Any, after: Any) -> str:
    if label == before:
        return "lost"
    return "gained" if label == after else "other"


def _recall(counts: tuple[int, ...], n: int) -> float | None:
    total = sum(counts)
    return counts[n] / total if total and n < len(counts) else None


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
