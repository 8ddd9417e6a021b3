"""What a model's output says: scores, probabilities, the answer.

How an output is read (``kind``, see :mod:`device_agent.contract.signals`) is decided
once, on the float model's output, and then held for every artifact: a quantized
softmax that sums to 0.97 is still a softmax.
"""

import numpy as np
from numpy.typing import NDArray

from device_agent.contract import signals
from device_agent.contract.errors import StepError
from device_agent.contract.signals import Floats, Kind, kind_of, squeezed
from device_agent.contract.tensors import Array

from ..errors import InputError

SAME = 0.05
"""Values count as the same answer up to this share of the reference's deviation."""
SCORED: tuple[Kind, ...] = ("probabilities", "logits")
SINGLE: tuple[Kind, ...] = ("probability", "values")


def probabilities(output: Array, kind: Kind) -> Floats:
    """``[N, C]`` probabilities; a single one becomes two columns.

    Raises:
        InputError: the output has none.
    """
    try:
        return signals.probabilities(output, kind)
    except StepError as error:
        raise _no_scores(output) from error


def classes(output: Array, kind: Kind) -> NDArray[np.int64]:
    """``[N]`` class indexes; equal scores are won by the lowest index.

    One number per sample is a yes from 0.5 on as a probability, from 0 on as a logit.

    Raises:
        InputError: the output has no classes.
    """
    array = squeezed(output)
    if kind in SCORED:
        return np.asarray(np.argmax(array, axis=1), np.int64)
    if kind == "classes":
        return np.asarray(array, np.int64)
    if kind in SINGLE:
        return np.asarray(array >= (0.5 if kind == "probability" else 0.0), np.int64)
    raise _no_scores(output)


def width(output: Array, kind: Kind) -> int | None:
    """How many classes there are; None when the output does not say."""
    if kind in SCORED:
        return int(squeezed(output).shape[1])
    return 2 if kind in SINGLE else None


def is_classes(labels: Array | None, output: Array, kind: Kind) -> bool:
    """Whether labels number (or name) the classes that the output scores."""
    count = width(output, kind)
    if labels is None or labels.ndim != 1 or count is None or kind == "values":
        return False
    if labels.dtype.kind == "U":
        return len(np.unique(labels)) == count
    return bool(
        labels.dtype.kind in "biu" and labels.min() >= 0 and labels.max() < count
    )


def numbered(labels: Array, count: int | None) -> NDArray[np.int64]:
    """Labels as class indexes; text is numbered in the order of the names.

    Raises:
        InputError: they are not one class per sample; names the first that is not.
    """
    if labels.dtype.kind == "U":
        names, numbers = np.unique(labels, return_inverse=True)
        if count is not None and len(names) != count:
            raise InputError(
                f"the labels are {len(names)} different texts ({str(names[0])!r}, …) "
                f"and the output has {count} classes; give class numbers, for a "
                "missing class would shift the others"
            )
        return numbers.astype(np.int64)
    if labels.ndim != 1 or labels.dtype.kind not in "biuf":
        raise InputError(
            f"labels of shape {list(labels.shape)} and type {labels.dtype} are no "
            "classes; expected one whole number per sample"
        )
    whole = labels.astype(np.int64)
    wrong = (whole != labels) | (whole < 0)
    wrong |= np.zeros(len(whole), bool) if count is None else whole >= count
    if wrong.any():
        place = int(np.argmax(wrong))
        expected = "whole numbers from 0" if count is None else f"0 to {count - 1}"
        raise InputError(
            f"the label of sample {place} (from 0) is {labels[place]}; "
            f"the classes are {expected}"
        )
    return whole


def same_answers(output: Array, reference: Array, kind: Kind) -> NDArray[np.bool_]:
    """Which samples have the reference's answer, ``[N]``.

    Classes are compared where there are some. Values and tensors are the same answer
    when their difference, root-mean-square over the sample's elements, is at most
    ``SAME`` of the reference's standard deviation over all samples and elements.
    """
    if kind not in ("values", "tensor"):
        return np.asarray(classes(output, kind) == classes(reference, kind))
    return np.asarray(deviations(output, reference) <= SAME)


def deviations(output: Array, reference: Array) -> Floats:
    """Each sample's root-mean-square difference in the reference's deviations."""
    count = len(reference)
    now = output.reshape(count, -1).astype(np.float64)
    before = reference.reshape(count, -1).astype(np.float64)
    error = np.sqrt(((now - before) ** 2).mean(axis=1))
    spread = float(before.std()) or float(np.abs(before).max()) or 1.0
    return np.asarray(error / spread)


def _no_scores(output: Array) -> InputError:
    return InputError(
        "expected one score per class, [samples, classes], or one number per sample; "
        f"found the shape {list(output.shape)}: name another output, or a metric of "
        "your own (module:function)"
    )


__all__ = [
    "Floats", "Kind", "classes", "deviations", "is_classes", "kind_of", "numbered",
    "probabilities", "same_answers", "squeezed", "width",
]  # fmt: skip
