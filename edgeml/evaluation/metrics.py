"""Metrics: how good answers are.

The table :data:`METRICS` has the built-in ones; any other is ``module:function``::

    def metric(outputs, labels, reference) -> float

with ``outputs`` and ``reference`` (the float model's) as name → ``[N, …]`` and
``labels`` an array or None. It is looked up in the recipe's folder first.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np

from device_agent.contract.tensors import Array

from ..errors import InputError
from ..intake.modules import importable
from .scores import Floats, Kind, classes, probabilities, same_answers, squeezed, width

ECE_BINS = 15
Score = Callable[[Array, Array, Kind], float]


class Undefined(InputError):  # noqa: N818 - reads as a fact, like the metric it is of
    """The metric has no value on these samples (one class only, for AUC)."""


@dataclass(frozen=True)
class Metric:
    """A built-in metric. ``score`` takes output, truth and how the output is read.

    The truth is the labels; for ``agreement`` it is the float model's output.
    """

    score: Score
    task: Literal["classification", "regression", "agreement"]
    better: Literal["higher", "lower"] = "higher"

    @property
    def needs_labels(self) -> bool:
        """Whether it cannot be had without labels."""
        return self.task != "agreement"


def top1(output: Array, labels: Array, kind: Kind) -> float:
    """Share of samples whose answer is the label."""
    return float((classes(output, kind) == labels).mean())


def top5(output: Array, labels: Array, kind: Kind) -> float:
    """Share of samples whose label is among the five highest scores."""
    if kind not in ("probabilities", "logits"):
        return top1(output, labels, kind)
    ranked = np.argsort(-squeezed(output).astype(np.float64), axis=1, kind="stable")
    return float((ranked[:, :5] == labels[:, None]).any(axis=1).mean())


def f1(output: Array, labels: Array, kind: Kind) -> float:
    """F1 of each class that is a label or an answer, averaged over these classes."""
    answers = classes(output, kind)
    scores = []
    for one in np.union1d(answers, labels):
        hits = int(((answers == one) & (labels == one)).sum())
        total = int((answers == one).sum()) + int((labels == one).sum())
        scores.append(2 * hits / total)
    return float(np.mean(scores))


def auc(output: Array, labels: Array, kind: Kind) -> float:
    """Area under the ROC curve; ties count half; several classes one against the rest.

    References:
        Hanley and McNeil, The meaning and use of the area under a receiver operating
        characteristic (ROC) curve, Radiology 143, 1982.

    Raises:
        Undefined: a class has no sample, or all samples.
    """
    scores = squeezed(output).astype(np.float64)
    if scores.ndim == 2 and scores.shape[1] == 2:
        scores = scores[:, 1] - scores[:, 0]  # in the order of any softmax of them
    if scores.ndim == 1:
        return _area(scores, labels == 1)
    columns = probabilities(output, kind)
    return float(
        np.mean([_area(column, labels == one) for one, column in enumerate(columns.T)])
    )


def _area(scores: Floats, positive: Array) -> float:
    hits, count = int(positive.sum()), len(positive)
    if hits in (0, count):
        raise Undefined(
            f"auc needs samples of both kinds; found {hits} positive of {count}"
        )
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    above = float(ranks[positive].sum()) - hits * (hits + 1) / 2
    return above / (hits * (count - hits))


def mae(output: Array, labels: Array, kind: Kind) -> float:
    """Mean absolute error."""
    return float(np.abs(_errors(output, labels)).mean())


def rmse(output: Array, labels: Array, kind: Kind) -> float:
    """Root of the mean squared error."""
    return math.sqrt(float((_errors(output, labels) ** 2).mean()))


def _errors(output: Array, labels: Array) -> Floats:
    values = squeezed(output).astype(np.float64)
    truth = squeezed(np.asarray(labels, np.float64))
    if values.shape != truth.shape:
        raise InputError(
            f"the output is {list(values.shape)} and the labels are "
            f"{list(truth.shape)}; an error needs one label per number"
        )
    return values - truth


def agreement(output: Array, reference: Array, kind: Kind) -> float:
    """Share of samples with the float model's answer (:mod:`.scores`)."""
    return float(same_answers(output, reference, kind).mean())


METRICS: Mapping[str, Metric] = {
    "top1": Metric(top1, "classification"),
    "top5": Metric(top5, "classification"),
    "f1": Metric(f1, "classification"),
    "auc": Metric(auc, "classification"),
    "mae": Metric(mae, "regression", "lower"),
    "rmse": Metric(rmse, "regression", "lower"),
    "agreement": Metric(agreement, "agreement"),
}


def ece(output: Array, labels: Array, kind: Kind, bins: int = ECE_BINS) -> float:
    """Expected calibration error: how far confidence is from being right, 0 to 1.

    References:
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017 (equation 3).
    """
    chances = probabilities(output, kind)
    confidence = chances.max(axis=1)
    right = classes(output, kind) == labels
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    place = np.searchsorted(edges, confidence, side="left")
    total = 0.0
    for one in range(bins):
        inside = place == one
        if inside.any():
            total += abs(float(right[inside].sum() - confidence[inside].sum()))
    return total / len(confidence)


def confusion(output: Array, labels: Array, kind: Kind) -> tuple[tuple[int, ...], ...]:
    """Counts [label][answer]."""
    answers = classes(output, kind)
    size = width(output, kind) or int(max(answers.max(), labels.max())) + 1
    counts = np.bincount(labels * size + answers, minlength=size * size)
    return tuple(tuple(map(int, row)) for row in counts.reshape(size, size))


def custom(
    name: str,
    folder: Path,
    outputs: Mapping[str, Array],
    labels: Array | None,
    reference: Mapping[str, Array],
) -> float:
    """The value of the recipe's own ``module:function``.

    Raises:
        InputError: it is not found, raises, or gives no finite number.
    """
    module, _, attribute = name.partition(":")
    try:
        with importable(folder, module):
            value: Any = getattr(import_module(module), attribute)(
                dict(outputs), labels, dict(reference)
            )
            number = float(value)
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        raise InputError(
            f"metric {name} raised {type(error).__name__}: {text}"
        ) from error
    if not math.isfinite(number):
        raise InputError(f"metric {name} gave {number}; expected a finite number")
    return number
