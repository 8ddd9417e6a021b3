"""Steps on any array: numbers, dtype, axes.

The rules it keeps:

1. Arithmetic gives floats: integers of at most 16 bits and float16 become float32,
   wider ones float64 (``batched`` narrows to the declared type at the end).
2. Parameters take the width of the data, as a framework's own layer would.
"""

import math
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from .errors import StepError
from .steps import (
    ELEMENTS_MAX,
    LIST_LENGTH_MAX,
    ArrayStep,
    Finite,
    Numbers,
    Positives,
    as_float,
    check_finite,
    check_rank,
)
from .tensors import Array

Dtype = Literal[
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
    "float16", "float32", "float64",
]  # fmt: skip


class Scale(ArrayStep):
    """``x * factor``."""

    word: ClassVar = "scale"
    shorthand: ClassVar = "factor"
    usage: ClassVar = "a number"
    factor: Finite

    def __call__(self, array: Array) -> Array:
        """Floats of the same shape."""
        floats = as_float(array)
        return np.asarray(floats * floats.dtype.type(self.factor))


class Affine(ArrayStep):
    """``(x + offset) * factor``: what a quantized feature stands for."""

    word: ClassVar = "affine"
    usage: ClassVar = "{offset = number, factor = number}"
    offset: Finite = 0.0
    factor: Finite = 1.0

    def __call__(self, array: Array) -> Array:
        """Floats of the same shape."""
        floats = as_float(array)
        kind = floats.dtype.type
        return np.asarray((floats + kind(self.offset)) * kind(self.factor))


class Normalize(ArrayStep):
    """``(x - mean) / std`` per channel; one number serves all channels."""

    word: ClassVar = "normalize"
    usage: ClassVar = (
        "{mean = [number per channel], std = [positive number per channel], axis = -1}"
    )
    mean: Numbers
    std: Positives
    axis: int = -1
    one_for_all: ClassVar[bool] = True

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} numbers, std {len(self.std)}")
        return self

    def __call__(self, array: Array) -> Array:
        """Floats of the same shape."""
        if len(self.mean) == 1 and self.one_for_all:
            shape = [1] * array.ndim
        elif not -array.ndim <= self.axis < array.ndim:
            raise StepError(
                f"expected an axis {self.axis}, found shape {list(array.shape)}"
            )
        elif array.shape[self.axis] != len(self.mean):
            raise StepError(
                f"expected {len(self.mean)} on axis {self.axis}, "
                f"found shape {list(array.shape)}"
            )
        else:
            shape = [1] * array.ndim
            shape[self.axis] = len(self.mean)
        floats = as_float(array)
        mean = np.asarray(self.mean, floats.dtype).reshape(shape)
        std = np.asarray(self.std, floats.dtype).reshape(shape)
        return np.asarray((floats - mean) / std)


class Standardize(Normalize):
    """``(x - mean) / std`` per column of a table; every column is listed."""

    word: ClassVar = "standardize"
    usage: ClassVar = "{mean = [number per column], std = [positive number per column]}"
    one_for_all: ClassVar = False


class Clip(ArrayStep):
    """Limits values to ``[low, high]``; the dtype stays."""

    word: ClassVar = "clip"
    shorthand: ClassVar = "range"
    usage: ClassVar = "[low, high]"
    range: tuple[Finite, Finite]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.range[0] > self.range[1]:
            raise ValueError(f"low {self.range[0]} is above high {self.range[1]}")
        return self

    def __call__(self, array: Array) -> Array:
        """The same shape and dtype."""
        low, high = self.range
        if array.dtype.kind in "iu":
            # whole bounds inside the dtype, or numpy widens or overflows
            info = np.iinfo(array.dtype)
            low = min(max(math.ceil(low), info.min), info.max)
            high = max(min(math.floor(high), info.max), info.min)
        elif array.dtype.kind == "b":
            raise StepError("expected numbers, found bool; cast first")
        return np.clip(array, array.dtype.type(low), array.dtype.type(high))


class Cast(ArrayStep):
    """To another dtype; to integers it rounds half to even and saturates."""

    word: ClassVar = "cast"
    shorthand: ClassVar = "dtype"
    usage: ClassVar = "a numpy dtype such as 'float32', 'uint8', 'int64'"
    dtype: Dtype

    def __call__(self, array: Array) -> Array:
        """The same shape."""
        wanted = np.dtype(self.dtype)
        if wanted.kind in "iu" and array.dtype.kind in "iuf":
            return _saturated(array, wanted)
        with np.errstate(over="ignore"):
            result = array.astype(wanted)
        check_finite(result, f"the {self.dtype} result")
        return result


def _saturated(array: Array, wanted: np.dtype[Any]) -> Array:
    info = np.iinfo(wanted)
    whole = np.rint(array) if array.dtype.kind == "f" else array
    # compared as Python numbers: float64 has no 2**63 - 1, a cast of it wraps
    low, high = whole <= info.min, whole >= info.max
    inside = np.where(low | high, whole.dtype.type(0), whole).astype(wanted)
    inside[low] = info.min
    inside[high] = info.max
    return inside


class Select(ArrayStep):
    """Keeps the listed columns, in that order: indexes on the last axis."""

    word: ClassVar = "select"
    shorthand: ClassVar = "columns"
    usage: ClassVar = "[column index, …]"
    columns: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        Field(min_length=1, max_length=LIST_LENGTH_MAX),
    ]

    def __call__(self, array: Array) -> Array:
        """The last axis has one entry per listed column."""
        have = array.shape[-1] if array.ndim else 0
        if max(self.columns) >= have:
            raise StepError(
                f"expected more than {max(self.columns)} columns, found {have}"
            )
        return array[..., list(self.columns)]


class Reshape(ArrayStep):
    """To a shape with the same number of elements; one -1 is worked out."""

    word: ClassVar = "reshape"
    shorthand: ClassVar = "shape"
    usage: ClassVar = "[dimension, …], at most one of them -1"
    shape: Annotated[
        tuple[Annotated[int, Field(ge=-1, le=ELEMENTS_MAX)], ...],
        Field(max_length=16),
    ]

    @model_validator(mode="after")
    def _one_open(self) -> Self:
        if self.shape.count(-1) > 1 or 0 in self.shape:
            raise ValueError("dimensions are positive, at most one of them -1")
        return self

    def __call__(self, array: Array) -> Array:
        """The same elements in row-major order."""
        known = math.prod(d for d in self.shape if d != -1)
        fits = array.size % known == 0 if -1 in self.shape else array.size == known
        if not fits:
            raise StepError(
                f"shape {list(array.shape)} has {array.size} elements, "
                f"not those of {list(self.shape)}"
            )
        return array.reshape(self.shape)


class Layout(ArrayStep):
    """Names axes by letters and puts them in another order: ``HWC->CHW``.

    ``1`` on the left is an axis of length one that goes, on the right one that comes:
    ``HW->1HW``, ``HWC->1CHW``, ``HW1->HW``.
    """

    word: ClassVar = "layout"
    shorthand: ClassVar = "axes"
    usage: ClassVar = "'HWC->CHW': the same letters on both sides, 1 for a unit axis"
    axes: Annotated[str, Field(pattern=r"^[A-Z1]{0,8}->[A-Z1]{0,8}$")]

    @model_validator(mode="after")
    def _same_letters(self) -> Self:
        before, after = (side.replace("1", "") for side in self.axes.split("->"))
        if len(set(before)) != len(before) or sorted(before) != sorted(after):
            raise ValueError(f"{self.axes!r} has not each letter once on both sides")
        return self

    def __call__(self, array: Array) -> Array:
        """The axes as the right side says, contiguous."""
        before, after = self.axes.split("->")
        check_rank(array, (len(before),), f"axes {before}")
        units = [i for i, letter in enumerate(before) if letter == "1"]
        if any(array.shape[i] != 1 for i in units):
            raise StepError(
                f"expected 1 on axes {units} of {before}, "
                f"found shape {list(array.shape)}"
            )
        letters = before.replace("1", "")
        order = [letters.index(letter) for letter in after if letter != "1"]
        moved = np.squeeze(array, tuple(units)).transpose(order)
        new = tuple(i for i, letter in enumerate(after) if letter == "1")
        return np.ascontiguousarray(np.expand_dims(moved, new))


STEPS = (
    Scale, Affine, Normalize, Standardize, Clip, Cast, Select, Reshape, Layout,
)  # fmt: skip
