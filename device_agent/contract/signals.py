"""Signals: a few numbers per inference that drift shows in.

The rules it keeps:

1. One implementation, used when the baseline is made and on the device.
2. Cheap and bounded: a pass or two over input and output, at most
   :data:`SIGNALS_MAX` numbers.
3. How an output is read is decided once, when the baseline is made.

======================  ==================================  ========================
kind                    output, unit dimensions taken off   signals
======================  ==================================  ========================
``probabilities``       ``[N, C]`` rows in [0, 1], sum 1    answer, confidence,
``logits``              ``[N, C]`` others                   entropy, margin
``probability``         ``[N]`` floats in [0, 1]            the same, of two classes
``values``              ``[N]`` other floats                value
``classes``             ``[N]`` integers or bools           answer
``tensor``              anything larger                     mean, std, max by column
======================  ==================================  ========================
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from .errors import StepError
from .tensors import Array, Feeds

Kind = Literal["probabilities", "logits", "probability", "values", "classes", "tensor"]
Floats = NDArray[np.float64]

SUM_SLACK = 0.05
"""How far the mean row sum of a quantized softmax may be from 1."""
RANGE_SLACK = 0.01
COLUMNS_MAX = 64
"""Up to so many numbers, each column of a vector is a signal."""
OUTPUT_COLUMNS_MAX = 16
SIGNALS_MAX = 256
CHANNELS = (1, 3, 4)
IMAGE_SIDE_MIN = 8


class InputView(BaseModel):
    """How one input is looked at.

    ``columns``: each number of a vector; ``image``: channels on ``axis``; ``whole``:
    all numbers together. ``low`` and ``high`` are the extremes of the reference data:
    what reaches them is saturated.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    view: Literal["columns", "image", "whole"]
    axis: Annotated[int, Field(ge=0, le=3)] = 0
    low: float
    high: float


def squeezed(output: Array) -> Array:
    """``[N, …]`` without dimensions of length 1 after the first."""
    kept = [size for size in output.shape[1:] if size != 1]
    return output.reshape(len(output), *kept)


def kind_of(output: Array) -> Kind:
    """How the outputs ``[N, …]`` of many samples are read; see the module's table."""
    array = squeezed(output)
    if array.ndim > 2 or (array.ndim == 2 and array.dtype.kind != "f"):
        return "tensor"
    if array.ndim == 1:
        if array.dtype.kind != "f":
            return "classes"
        return "probability" if _unit(array) else "values"
    sums = array.astype(np.float64).sum(axis=1)
    is_softmax = _unit(array) and abs(float(sums.mean()) - 1) <= SUM_SLACK
    return "probabilities" if is_softmax else "logits"


def _unit(array: Array) -> bool:
    return bool(((array >= -RANGE_SLACK) & (array <= 1 + RANGE_SLACK)).all())


def probabilities(output: Array, kind: Kind) -> Floats:
    """``[N, C]`` probabilities; a single one becomes two columns.

    ``values`` are taken for logits of yes.

    Raises:
        StepError: the output has no scores.
    """
    scores = squeezed(output).astype(np.float64)
    if kind == "probabilities":
        return np.clip(scores, 0.0, 1.0)
    if kind == "logits":
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))
    if kind == "values":
        # exp of what is never positive, so that nothing overflows
        small = np.exp(-np.abs(scores))
        scores = np.where(scores >= 0, 1.0, small) / (1.0 + small)
    elif kind != "probability":
        raise StepError(
            "expected one score per class, [samples, classes], or one number per "
            f"sample; found {kind} of shape {list(output.shape)}"
        )
    one = np.clip(scores, 0.0, 1.0)
    return np.stack([1.0 - one, one], axis=1)


def view_of(name: str, feeds: Sequence[Feeds]) -> InputView:
    """How an input of these reference samples is looked at."""
    shape = feeds[0][name].shape
    low = min(float(feed[name].min()) for feed in feeds)
    high = max(float(feed[name].max()) for feed in feeds)
    for axis, sides in ((1, shape[2:4]), (3, shape[1:3])):
        if len(shape) == 4 and shape[axis] in CHANNELS and min(sides) >= IMAGE_SIDE_MIN:
            return InputView(name=name, view="image", axis=axis, low=low, high=high)
    is_row = len(shape) == 2 and shape[1] <= COLUMNS_MAX
    view: Literal["columns", "whole"] = "columns" if is_row else "whole"
    return InputView(name=name, view=view, low=low, high=high)


def input_signals(view: InputView, array: Array) -> dict[str, float]:
    """Signals of one input, batch dimension 1 included; names begin with its name."""
    floats = array.astype(np.float64)
    name = f"input:{view.name}"
    if view.view == "columns":
        row = floats.reshape(-1)
        return {f"{name}[{place}]": float(one) for place, one in enumerate(row)}
    reached = (floats <= view.low) | (floats >= view.high)
    found = {
        f"{name}/mean": float(floats.mean()),
        f"{name}/std": float(floats.std()),
        f"{name}/min": float(floats.min()),
        f"{name}/max": float(floats.max()),
        f"{name}/saturated": float(reached.mean()),
    }
    if view.view == "image":
        image = np.moveaxis(floats[0], view.axis - 1, 0)
        found[f"{name}/sharpness"] = _sharpness(image.mean(axis=0))
        if len(image) > 1:
            for place, channel in enumerate(image):
                found[f"{name}/c{place}/mean"] = float(channel.mean())
                found[f"{name}/c{place}/std"] = float(channel.std())
    return found


def _sharpness(image: Floats) -> float:
    """Mean absolute difference of neighbours, down and across."""
    down, across = np.abs(np.diff(image, axis=0)), np.abs(np.diff(image, axis=1))
    return float((down.mean() + across.mean()) / 2)


def output_signals(output: Array, kind: Kind) -> dict[str, float]:
    """Signals of one sample's output, ``[1, …]``.

    ``entropy`` is a share of the largest possible; ``margin`` is between the two
    highest probabilities.
    """
    flat = output.reshape(-1).astype(np.float64)
    if kind == "tensor":
        return _tensor_signals(output)
    if kind in ("values", "classes"):
        return {"value" if kind == "values" else "answer": float(flat[0])}
    chances = probabilities(output, kind)[0]
    ranked = np.sort(chances)[::-1]
    whole = chances / max(float(chances.sum()), 1e-12)
    logs = np.log(np.where(whole > 0, whole, 1.0))
    answer = _answer(output, kind)
    return {
        "answer": float(answer),
        "confidence": float(ranked[0]),
        "entropy": float(-(whole * logs).sum() / np.log(len(chances))),
        "margin": float(ranked[0] - ranked[1]),
    }


def _tensor_signals(output: Array) -> dict[str, float]:
    """Of a detector's ``[1, boxes, classes]`` the best score of each class tells."""
    floats = output.astype(np.float64)
    found = {"output/mean": float(floats.mean()), "output/std": float(floats.std())}
    if output.ndim < 3 or output.shape[-1] > OUTPUT_COLUMNS_MAX:
        return {**found, "output/max": float(floats.max())}
    highest = floats.reshape(-1, output.shape[-1]).max(axis=0)
    return found | {
        f"output/max[{place}]": float(one) for place, one in enumerate(highest)
    }


def _answer(output: Array, kind: Kind) -> int:
    flat = output.reshape(-1)
    return int(flat[0] >= 0.5) if kind == "probability" else int(np.argmax(flat))


def signals(
    views: Sequence[InputView], kind: Kind, feeds: Feeds, output: Array
) -> dict[str, float]:
    """All signals of one inference: its inputs and the output that matters."""
    found: Mapping[str, float] = {
        key: value
        for view in views
        for key, value in input_signals(view, feeds[view.name]).items()
    }
    return {**found, **output_signals(output, kind)}
