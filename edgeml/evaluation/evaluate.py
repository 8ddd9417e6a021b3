"""An artifact on the validation samples: metrics, slices, flips, calibration.

The rules it keeps:

1. Samples run one by one at batch 1, as the device serves them.
2. An output that is not finite is an error that names output and sample.
3. How outputs are read (:mod:`.scores`) is decided on the float model's.
4. A slice in which the metric has no value (AUC of one class) has a count and no
   value.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agent.contract.tensors import Array, Feeds
from device_agent.runtimes.base import Session

from ..errors import InputError
from ..outcome import Evaluation, Flip
from ..recipes.recipe import MetricOptions
from .metrics import METRICS, Undefined, confusion, custom, ece
from .scores import (
    Kind,
    classes,
    deviations,
    is_classes,
    kind_of,
    numbered,
    same_answers,
    squeezed,
    width,
)

FLIPS_SHOWN = 32
OUTPUT_BYTES_MAX = 4 << 30
"""Bytes of all outputs together; they are held in memory to be compared."""
VALUES_SHOWN = 8
"""Numbers of one answer that a flip shows."""
SLICE_VALUES_MAX = 200
"""Different values of one slice column."""
CONFUSION_CLASSES_MAX = 100
COMPANIONS = {
    "classification": ("top1", "top5", "f1"),
    "regression": ("mae", "rmse"),
}
"""What is told beside the recipe's metric, by task."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Judged:
    """Outputs and truths of the same samples, and how they are read."""

    outputs: Mapping[str, Array]
    reference: Mapping[str, Array]
    labels: Array | None
    name: str
    kind: Kind
    folder: Path

    @property
    def output(self) -> Array:
        return self.outputs[self.name]

    def only(self, chosen: NDArray[np.bool_]) -> "_Judged":
        """The chosen samples."""
        return replace(
            self,
            outputs={name: array[chosen] for name, array in self.outputs.items()},
            reference={name: array[chosen] for name, array in self.reference.items()},
            labels=None if self.labels is None else self.labels[chosen],
        )

    def metric(self, name: str) -> float:
        """The value of a metric."""
        if name not in METRICS:
            return custom(name, self.folder, self.outputs, self.labels, self.reference)
        metric = METRICS[name]
        truth = self.labels if metric.needs_labels else self.reference[self.name]
        if truth is None:
            raise InputError(
                f"metric {name} needs labels and the validation samples have none: "
                "name their key or column ([data] label), or judge by agreement"
            )
        return metric.score(self.output, truth, self.kind)


def evaluate(
    session: Session,
    feeds: Sequence[Feeds],
    labels: Array | None,
    slices: Mapping[str, Sequence[str]],
    metric: MetricOptions,
    *,
    reference: Mapping[str, Array] | None,
    ids: Sequence[str],
    samples_digest: str,
    folder: Path,
    progress: Progress | None = None,
) -> tuple[Evaluation, dict[str, Array]]:
    """Run every sample and judge the outputs.

    Args:
        session: the artifact in its runtime.
        feeds: one run per sample, batch dimension 1.
        labels: one per sample (class indexes, numbers, or text: the classes in the
            order of their names), or None.
        slices: column → each sample's value in it.
        metric: the recipe's; its ``slices`` say which columns, none: all.
        reference: the float model's outputs as this function gave them; None when the
            session is the float model.
        ids: name of each sample.
        samples_digest: what goes into the record.
        folder: where ``module:function`` is looked up first.
        progress: called with (done, of) after every sample.

    Returns:
        The record, and the outputs by name, ``[N, …]``: a leading batch dimension of 1
        is taken off.

    Raises:
        InputError: an output is not finite, changes its shape, or does not fit metric
            or labels.
        ArtifactError: the runtime fails.
    """
    if not feeds:
        raise InputError("there are no validation samples; expected at least one")
    outputs = _run(session, feeds, ids, progress)
    before = outputs if reference is None else reference
    name = _judged_output(metric, outputs, before)
    kind = kind_of(before[name])
    task = _task(metric, labels, before[name], kind)
    if task == "regression":  # numbers from 0 to 1 are no probabilities here
        kind = "values" if squeezed(before[name]).ndim == 1 else "tensor"
    judged = _Judged(
        outputs, before, _labels(labels, task, before[name], kind, ids), name, kind,
        folder,
    )  # fmt: skip
    metrics = _metrics(judged, metric.name, task)
    found, counts = _slices(judged, metric, slices)
    evaluation = Evaluation(metrics, len(feeds), samples_digest, found, counts)
    if reference is not None:
        evaluation = _with_flips(evaluation, judged, metric, ids, labels)
    if task == "classification" and judged.labels is not None:
        evaluation = _with_confidence(evaluation, judged)
    return evaluation, outputs


def score_of(
    outputs: Mapping[str, Array],
    labels: Array | None,
    metric: MetricOptions,
    folder: Path,
    reference: Mapping[str, Array] | None = None,
) -> float:
    """The recipe's metric of stacked outputs, ``[N, …]`` each; higher is better.

    Raises:
        InputError: outputs, labels and metric do not fit.
    """
    before = outputs if reference is None else reference
    name = _judged_output(metric, outputs, before)
    kind = kind_of(before[name])
    task = _task(metric, labels, before[name], kind)
    if task == "regression":
        kind = "values" if squeezed(before[name]).ndim == 1 else "tensor"
    ids = [str(place) for place in range(len(outputs[name]))]
    truths = _labels(labels, task, before[name], kind, ids)
    value = _Judged(outputs, before, truths, name, kind, folder).metric(metric.name)
    return value if metric.better == "higher" else -value


def _run(
    session: Session,
    feeds: Sequence[Feeds],
    ids: Sequence[str],
    progress: Progress | None,
) -> dict[str, Array]:
    stacked: dict[str, Array] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for index, feed in enumerate(feeds):
        run = session.predict(feed)
        if index == 0:
            shapes = {name: array.shape for name, array in run.items()}
            stacked = _empty(run, len(feeds))
        for name, array in run.items():
            if array.shape != shapes[name]:
                raise InputError(
                    f"output {name!r} is {list(array.shape)} on sample {ids[index]} "
                    f"and {list(shapes[name])} on {ids[0]}; outputs of one shape can "
                    "be compared: fix it in the model"
                )
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise InputError(
                    f"output {name!r} holds NaN or infinity on sample {ids[index]}; "
                    "the artifact is broken, or was quantized beyond its range"
                )
            stacked[name][index] = array.reshape(stacked[name].shape[1:])
        if progress is not None:
            progress(index + 1, len(feeds))
    declared = [spec.name for spec in session.outputs if spec.name in stacked]
    return {name: stacked[name] for name in dict.fromkeys([*declared, *stacked])}


def _empty(run: Mapping[str, Array], count: int) -> dict[str, Array]:
    total = count * sum(array.nbytes for array in run.values())
    if total > OUTPUT_BYTES_MAX:
        raise InputError(
            f"the outputs of {count} samples take {total} bytes; at most "
            f"{OUTPUT_BYTES_MAX} are compared: validate on fewer samples (limit)"
        )
    return {
        name: np.empty(
            (count, *(array.shape[1:] if array.shape[:1] == (1,) else array.shape)),
            array.dtype,
        )
        for name, array in run.items()
    }


def _judged_output(
    metric: MetricOptions, outputs: Mapping[str, Array], reference: Mapping[str, Array]
) -> str:
    name = metric.output or next(iter(reference))
    if name not in reference:
        raise InputError(
            f"metric.output {name!r} is not an output of the model; "
            f"it has {', '.join(reference)}"
        )
    for one, before in reference.items():
        if one not in outputs or outputs[one].shape != before.shape:
            found = list(outputs[one].shape) if one in outputs else "missing"
            raise InputError(
                f"output {one!r} is {found}; the float model's is {list(before.shape)}"
            )
    return name


def _task(
    metric: MetricOptions, labels: Array | None, output: Array, kind: Kind
) -> str | None:
    """What the metric says it is; for other metrics, what labels and output fit."""
    if metric.name in METRICS and METRICS[metric.name].task != "agreement":
        return METRICS[metric.name].task
    return "classification" if is_classes(labels, output, kind) else None


def _labels(
    labels: Array | None,
    task: str | None,
    output: Array,
    kind: Kind,
    ids: Sequence[str],
) -> Array | None:
    """The labels as the metrics take them: class indexes, or numbers.

    Raises:
        InputError: they are not, or not one per sample.
    """
    if labels is None or task is None:
        return labels
    if len(labels) != len(ids):
        raise InputError(f"there are {len(labels)} labels for {len(ids)} samples")
    if task == "regression":
        if labels.dtype.kind not in "biuf":
            raise InputError(f"label {labels[0]!r} is no number; this metric needs one")
        return labels.astype(np.float64)
    return numbered(labels, width(output, kind))


def _metrics(judged: _Judged, first: str, task: str | None) -> dict[str, float]:
    names = [first]
    if task is not None and judged.labels is not None:
        names += [one for one in COMPANIONS[task] if one != first]
    if task == "classification" and (width(judged.output, judged.kind) or 0) <= 5:
        names = [one for one in names if one != "top5" or one == first]
    return {name: judged.metric(name) for name in names}


def _slices(
    judged: _Judged, metric: MetricOptions, slices: Mapping[str, Sequence[str]]
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, int]]]:
    values: dict[str, dict[str, float]] = {}
    counts: dict[str, dict[str, int]] = {}
    for column in metric.slices or sorted(slices):
        if column not in slices:
            raise InputError(
                f"metric.slices {column!r} is no column of the validation samples; "
                f"they have {', '.join(sorted(slices)) or 'none'}"
            )
        cells = np.asarray(slices[column])
        names, sizes = np.unique(cells, return_counts=True)
        if len(names) > SLICE_VALUES_MAX:
            raise InputError(
                f"slice column {column!r} has {len(names)} different values; at most "
                f"{SLICE_VALUES_MAX}: group them"
            )
        counts[column] = {
            str(name): int(size) for name, size in zip(names, sizes, strict=True)
        }
        values[column] = dict(_per_value(judged, metric.name, cells, names))
    return values, counts


def _per_value(
    judged: _Judged, metric: str, cells: Array, names: Array
) -> Iterator[tuple[str, float]]:
    for name in names:
        try:
            yield str(name), judged.only(cells == name).metric(metric)
        except Undefined:  # rule 4
            continue


def _with_flips(
    evaluation: Evaluation,
    judged: _Judged,
    metric: MetricOptions,
    ids: Sequence[str],
    labels: Array | None,
) -> Evaluation:
    """With the answers that changed; none are told where answers cannot be compared.

    That is a tensor judged by a metric of the user's own: a detector's boxes.
    """
    kind = judged.kind
    if kind == "tensor" and metric.name not in METRICS:
        return evaluation
    before = judged.reference[judged.name]
    if metric.name in METRICS and METRICS[metric.name].task == "classification":
        changed = classes(judged.output, kind) != classes(before, kind)
        kind = "logits" if kind == "tensor" else kind
        answers = [
            classes(one, judged.kind).tolist() for one in (before, judged.output)
        ]
    else:
        changed = ~same_answers(judged.output, before, kind)
        answers = _told(judged.output, before, kind)
    plain = None if labels is None else labels.tolist()
    flips = tuple(
        Flip(ids[one], plain and plain[one], answers[0][one], answers[1][one])
        for one in np.flatnonzero(changed)[:FLIPS_SHOWN]
    )
    return replace(evaluation, flip_rate=float(changed.mean()), flips=flips)


def _told(output: Array, before: Array, kind: Kind) -> list[list[Any]]:
    """Answers before and after, as people read them."""
    if kind == "values" or (kind == "tensor" and before[0].size <= VALUES_SHOWN):
        return [squeezed(one).tolist() for one in (before, output)]
    if kind == "tensor":
        differ = deviations(output, before)
        told = [f"differs by {one:.3g} standard deviations" for one in differ]
        return [["float"] * len(told), told]
    return [classes(one, kind).tolist() for one in (before, output)]


def _with_confidence(evaluation: Evaluation, judged: _Judged) -> Evaluation:
    labels, kind = judged.labels, judged.kind
    assert labels is not None, "asked for with labels only"
    size = width(judged.output, kind) or CONFUSION_CLASSES_MAX
    return replace(
        evaluation,
        ece=None if kind == "classes" else ece(judged.output, labels, kind),
        confusion=confusion(judged.output, labels, kind)
        if size <= CONFUSION_CLASSES_MAX
        else (),
    )
