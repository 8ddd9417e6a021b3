"""Makes the baseline: statistics of the validation data through the artifact.

The rules it keeps:

1. Outputs are the artifact's own, not the float model's.
2. Bins hold equally many values each, where the values allow it; a value that many
   samples share (a constant, a clipped peak) has a bin of its own.
3. Floats have nine significant digits, so that the canonical JSON is short and equal.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from device_agent.contract.baseline import (
    BINS_MAX,
    CLASSES_MAX,
    SAMPLE_MAX,
    Baseline,
    CalibrationMap,
    Signal,
)
from device_agent.contract.signals import SIGNALS_MAX, InputView, signals, view_of
from device_agent.contract.tensors import Array, Feeds

from ..errors import InputError
from ..evaluation.scores import (
    Floats,
    Kind,
    classes,
    is_classes,
    kind_of,
    numbered,
    probabilities,
    width,
)

DIGITS = 9
SAMPLE_SEED = 0
EDGE_SHARE = 1e-6
"""How far an edge lies beyond a lowest or highest value that many samples share."""
VALUES_MAX = 60_000
"""Sampled values of all signals together; they are most of the file (0.7 MB)."""


def baseline(
    feeds: Sequence[Feeds],
    outputs: Mapping[str, Array],
    labels: Array | None,
    output: str | None = None,
) -> dict[str, Any]:
    """The baseline file as JSON values (:class:`.Baseline`).

    Args:
        feeds: the inputs, one run per sample.
        outputs: what the artifact made of them, by name, ``[N, …]``.
        labels: one per sample; with them, confidence is calibrated to accuracy.
        output: the output that matters; None: the first.

    Raises:
        InputError: no samples, or no such output.
    """
    name = output or next(iter(outputs), "")
    if not feeds or name not in outputs or len(outputs[name]) != len(feeds):
        raise InputError(
            f"a baseline needs outputs {name!r} of {len(feeds)} samples; "
            f"found {', '.join(outputs) or 'none'}"
        )
    judged = outputs[name]
    kind = kind_of(judged)
    views = _views(feeds)
    table = _table(views, kind, feeds, judged)
    chosen = _chosen(len(feeds), len(table))
    right = _right(judged, labels, kind)
    made = Baseline(
        samples=len(feeds),
        output=name,
        kind=kind,
        inputs=views,
        signals=tuple(
            _signal(key, values, chosen)
            for key, values in list(table.items())[:SIGNALS_MAX]
        ),
        class_counts=_class_counts(judged, kind),
        calibration=None
        if right is None
        else isotonic(probabilities(judged, kind).max(axis=1), right),
        accuracy=None if right is None else _rounded(right.mean()),
    )
    return made.model_dump(mode="json")


def _views(feeds: Sequence[Feeds]) -> tuple[InputView, ...]:
    """Inputs of fixed shape; one whose shape changes has its extremes in ``whole``."""
    views = []
    for name in sorted(feeds[0]):
        view = view_of(name, feeds)
        if len({feed[name].shape for feed in feeds}) > 1:
            view = view.model_copy(update={"view": "whole"})
        views.append(
            view.model_copy(
                update={"low": _rounded(view.low), "high": _rounded(view.high)}
            )
        )
    return tuple(views)


def _table(
    views: Sequence[InputView], kind: Kind, feeds: Sequence[Feeds], output: Array
) -> dict[str, Floats]:
    """Signal → its value for every sample."""
    rows = [
        signals(views, kind, feed, output[index : index + 1])
        for index, feed in enumerate(feeds)
    ]
    return {key: np.asarray([row[key] for row in rows]) for key in rows[0]}


def _signal(name: str, values: Floats, chosen: Array) -> Signal:
    edges = bin_edges(values)
    places = np.searchsorted(edges, values, side="right")
    counts = np.bincount(places, minlength=len(edges) + 1)
    return Signal(
        name=name,
        mean=_rounded(values.mean()),
        std=_rounded(values.std()),
        min=_rounded(values.min()),
        max=_rounded(values.max()),
        edges=tuple(edges),
        counts=tuple(int(count) for count in counts),
        sample=tuple(_rounded(value) for value in values[chosen]),
    )


def bin_edges(values: Floats) -> list[float]:
    """Inner edges of at most 32 bins of equally many values; they grow strictly.

    Cuts lie halfway between neighbouring values, so that a value that many samples
    share falls on the same side on every machine. Where such a value is the lowest or
    the highest, an edge beyond it lets a change show.
    """
    seen, counts = np.unique(values, return_counts=True)
    reached = np.cumsum(counts)[:-1]
    wanted = np.arange(1, BINS_MAX - 2) / (BINS_MAX - 2) * len(values)
    last = np.searchsorted(reached, wanted)  # the value that fills each bin
    last = np.unique(last[last < len(reached)])
    edges = [*(seen[last] / 2 + seen[last + 1] / 2)]
    if not len(last) or last[0] == 0:
        edges.append(seen[0] - EDGE_SHARE * max(abs(seen[0]), 1.0))
    if not len(last) or last[-1] == len(seen) - 2:
        edges.append(seen[-1] + EDGE_SHARE * max(abs(seen[-1]), 1.0))
    return sorted({_rounded(one) for one in edges})


def _chosen(count: int, signal_count: int) -> Array:
    """Samples whose values are kept, in order."""
    order = np.random.default_rng(SAMPLE_SEED).permutation(count)
    return np.sort(order[: min(SAMPLE_MAX, VALUES_MAX // signal_count)])


def _class_counts(output: Array, kind: Kind) -> tuple[int, ...]:
    count = width(output, kind)
    if kind in ("values", "tensor"):
        return ()
    answers = classes(output, kind)
    most = count or int(answers.max(initial=0)) + 1
    if most > CLASSES_MAX or answers.min(initial=0) < 0:
        return ()
    return tuple(int(one) for one in np.bincount(answers, minlength=most))


def _right(output: Array, labels: Array | None, kind: Kind) -> Floats | None:
    """1 where the answer is the label; None where labels are no classes."""
    if labels is None or not is_classes(labels, output, kind):
        return None
    truth = numbered(labels, width(output, kind))
    return np.asarray(classes(output, kind) == truth, np.float64)


def isotonic(confidence: Floats, right: Floats) -> CalibrationMap:
    """The growing map from confidence to accuracy with the least squared error.

    References:
        Barlow et al., Statistical Inference under Order Restrictions, 1972 (pool
        adjacent violators); Zadrozny and Elkan, KDD 2002 (for calibration).
    """
    places, inverse, counts = np.unique(
        np.clip(confidence, 0.0, 1.0).round(DIGITS),
        return_inverse=True,
        return_counts=True,
    )
    means = np.bincount(inverse, weights=right) / counts
    blocks: list[list[float]] = []  # mean, weight, number of places
    for mean, weight in zip(means, counts, strict=True):
        blocks.append([float(mean), float(weight), 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            above, below = blocks.pop(), blocks.pop()
            weight = below[1] + above[1]
            mean = (below[0] * below[1] + above[0] * above[1]) / weight
            blocks.append([mean, weight, below[2] + above[2]])
    ends = np.cumsum([int(block[2]) for block in blocks])
    points: list[tuple[float, float]] = []
    for (mean, _, size), end in zip(blocks, ends, strict=True):
        for place in sorted({int(end - size), int(end - 1)}):
            points.append((_rounded(places[place]), min(_rounded(mean), 1.0)))
    return CalibrationMap(
        confidence=tuple(x for x, _ in points), accuracy=tuple(y for _, y in points)
    )


def _rounded(value: float) -> float:
    return float(f"{float(value):.{DIGITS}g}") + 0.0  # no negative zero
