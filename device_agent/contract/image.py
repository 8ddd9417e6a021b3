"""Steps on images: arrays HW or HWC, from file to model size.

The rules it keeps:

1. uint8 stays uint8 and float stays float; another dtype is refused.
2. ``resize`` of uint8 with ``antialias`` is Pillow's ``Image.resize`` bit for bit along
   each axis: the same filters, the same 22-bit fixed point. The width always goes
   before the height; newer Pillows sometimes turn that round, which is one level for
   bilinear and more for bicubic only where an overshoot is clipped in between.
3. Without ``antialias`` it is the half-pixel rule of ONNX ``Resize`` and of torch
   ``interpolate(align_corners=False)``, cubic coefficient -0.75.
4. No BLAS: sums have one order, so every machine gives the same bytes.
"""

import math
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from . import picture
from .errors import StepError
from .steps import (
    SIDE_PIXELS_MAX,
    ArrayStep,
    DecodeStep,
    Finite,
    Size,
    Step,
    check_body,
    check_elements,
    check_rank,
)
from .tensors import Array

FIXED_BITS = 22
"""Fraction bits of a uint8 filter weight: Pillow's PRECISION_BITS."""
_BLOCK_ELEMENTS = 1 << 17
"""Elements between the two passes of one ``resize``, where a row has not more."""

Floats = NDArray[np.float64]
Taps = tuple[NDArray[np.intp], Floats]
"""Per output position: the input positions and their weights, ``[out, taps]``."""


class DecodeImage(DecodeStep):
    """An image file to uint8 HWC (``RGB``: C is 3, ``L``: C is 1).

    The EXIF orientation is applied, an alpha channel dropped, 16 bits cut to 8. A JPEG
    of more than ``LARGE_PIXELS`` that a ``resize`` with ``antialias`` or ``area`` makes
    smaller is decoded at a half, a quarter or an eighth of its size, by the rules of
    :mod:`.picture`. After the resize a photo's levels differ by less than 1 on average,
    those of small print by up to 5. A side that ``fit`` derives may be one pixel off.
    """

    word: ClassVar = "decode_image"
    shorthand: ClassVar = "mode"
    usage: ClassVar = "'RGB' or 'L'"
    mode: Literal["RGB", "L"] = "RGB"

    def decode(self, body: bytes, then: Step | None = None) -> Array:
        """The pixels; ``then`` is the step that takes them. Needs Pillow."""
        check_body(body)
        pixels = picture.read(body, self.mode, _fitted(then))
        return pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels

    def plan(self, body: bytes, then: Step | None = None) -> picture.Plan:
        """What ``decode`` would do, from the file's header.

        Raises:
            StepError: it is no image.
        """
        return picture.plan(body, self.mode, _fitted(then))

    def admit(self, array: Array) -> Array:
        """Pixels that were decoded before: uint8 HWC, or HW for ``L``."""
        channels = 3 if self.mode == "RGB" else 1
        if array.ndim == 2 and channels == 1:
            array = array[:, :, np.newaxis]
        if array.ndim != 3 or array.shape[2] != channels or array.dtype != np.uint8:
            raise StepError(
                f"expected image bytes or uint8 [height, width, {channels}], "
                f"found {array.dtype} {list(array.shape)}"
            )
        return array


def _fitted(then: Step | None) -> picture.Fitted | None:
    """The sides that are asked for, where every pixel has its share in the result."""
    if not isinstance(then, Resize) or then.method == "nearest":
        return None
    return then.fitted if then.antialias or then.method == "area" else None


class Resize(ArrayStep):
    """To ``[height, width]``.

    ``method``: ``nearest`` takes the pixel at the centre; ``bilinear`` and ``bicubic``
    weigh by distance, over the whole source area of a pixel with ``antialias`` (Pillow)
    or over 2 and 4 pixels without (ONNX, torch); ``area`` weighs by coverage (OpenCV
    INTER_AREA when shrinking). ``fit``: ``stretch`` to the size, or keep the aspect and
    ``cover`` it (crop after) or stay ``inside`` it (pad after).
    """

    word: ClassVar = "resize"
    shorthand: ClassVar = "size"
    usage: ClassVar = (
        "[height, width] or {size = [height, width], "
        "method = bilinear|bicubic|nearest|area, antialias = true|false, "
        "fit = stretch|cover|inside}"
    )
    size: Size
    method: Literal["bilinear", "bicubic", "nearest", "area"] = "bilinear"
    antialias: bool = True
    fit: Literal["stretch", "cover", "inside"] = "stretch"

    def __call__(self, array: Array) -> Array:
        """HW or HWC of the same dtype."""
        check_image(array)
        if array.dtype != np.uint8 and array.dtype.kind != "f":
            raise StepError(f"expected uint8 or float, found {array.dtype}; cast first")
        height, width = self.fitted(array.shape[0], array.shape[1])
        channels = array.size // (array.shape[0] * array.shape[1])
        check_elements(array.shape[0] * width * channels)
        across = self._taps(array.shape[1], width)
        down = self._taps(array.shape[0], height)
        return _in_blocks(array, across, down)

    def fitted(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image of these sides gets.

        Raises:
            StepError: more than ``SIDE_PIXELS_MAX``.
        """
        if self.fit == "stretch":
            return self.size
        ratios = (self.size[0] / height, self.size[1] / width)
        lead = int(ratios[1] > ratios[0]) ^ (self.fit == "inside")
        # truncated like torchvision's Resize(shorter side)
        sides = [
            max(1, side * self.size[lead] // (height, width)[lead])
            for side in (height, width)
        ]
        sides[lead] = self.size[lead]
        if max(sides) > SIDE_PIXELS_MAX:
            raise StepError(f"would make {sides}; at most {SIDE_PIXELS_MAX} a side")
        return sides[0], sides[1]

    def _taps(self, before: int, after: int) -> Taps:
        if self.method == "nearest":
            # whole numbers: where a centre falls between two pixels, the later one
            at = (2 * np.arange(after) + 1) * before // (2 * after)
            return at[:, np.newaxis], np.ones((after, 1))
        if self.method == "area":
            return _area_taps(before, after)
        if self.antialias:
            return _filter_taps(before, after, self.method == "bicubic")
        return _point_taps(before, after, self.method == "bicubic")


def _triangle(x: Floats) -> Floats:
    return np.maximum(0.0, 1.0 - np.abs(x))


def _cubic(x: Floats, a: float) -> Floats:
    """The kernel of Keys (1981), "Cubic convolution interpolation"."""
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _filter_taps(before: int, after: int, cubic: bool) -> Taps:
    """Pillow's ``precompute_coeffs``: the filter stretched over the source area."""
    scale = before / after
    stretch = max(scale, 1.0)
    support = (2.0 if cubic else 1.0) * stretch
    centre = (np.arange(after) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.intp), 0)
    last = np.minimum((centre + support + 0.5).astype(np.intp), before)
    at = first[:, np.newaxis] + np.arange(math.ceil(support) * 2 + 1)
    x = (at - centre[:, np.newaxis] + 0.5) * (1.0 / stretch)
    weights = _cubic(x, -0.5) if cubic else _triangle(x)
    weights[at >= last[:, np.newaxis]] = 0.0
    # summed left to right as Pillow does, for the last bit
    weights *= 1.0 / np.add.accumulate(weights, axis=1)[:, -1:]
    return np.minimum(at, before - 1), weights


def _point_taps(before: int, after: int, cubic: bool) -> Taps:
    """Half-pixel interpolation between the nearest points; edges are repeated."""
    centre = (np.arange(after) + 0.5) * (before / after) - 0.5
    if not cubic:
        centre = np.maximum(centre, 0.0)
    offsets = np.arange(-1, 3) if cubic else np.arange(2)
    at = np.floor(centre).astype(np.intp)[:, np.newaxis] + offsets
    x = at - centre[:, np.newaxis]
    weights = _cubic(x, -0.75) if cubic else _triangle(x)
    return np.clip(at, 0, before - 1), weights


def _area_taps(before: int, after: int) -> Taps:
    """Each output pixel is the mean of the source area that it covers."""
    scale = before / after
    start = np.arange(after)[:, np.newaxis] * scale
    at = np.floor(start).astype(np.intp) + np.arange(math.ceil(scale) + 1)
    overlap = np.minimum(at + 1, start + scale) - np.maximum(at, start)
    weights = np.where(at < before, np.maximum(overlap, 0.0), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.minimum(at, before - 1), weights


def _in_blocks(array: Array, across: Taps, down: Taps) -> Array:
    """The width, then the height, for some rows of the result at a time.

    All rows between the two passes would be the height before times the width after.
    """
    at, weights = down
    row_elements = len(across[0]) * math.prod(array.shape[2:])
    rows_max = max(1, _BLOCK_ELEMENTS // row_elements)
    made = np.empty((len(at), len(across[0]), *array.shape[2:]), array.dtype)
    begin = 0
    while begin < len(at):
        first = at[begin, 0]
        end = int(np.searchsorted(at[:, -1], first + rows_max))
        end = max(begin + 1, min(end, begin + rows_max))
        rows = array[first : at[end - 1, -1] + 1]
        if made.shape[1] != array.shape[1]:
            rows = _resampled(rows, 1, across)
        if len(made) != len(array):
            rows = _resampled(rows, 0, (at[begin:end] - first, weights[begin:end]))
        else:
            rows = rows[begin - first : end - first]
        made[begin:end] = rows
        begin = end
    return made


def _resampled(array: Array, axis: int, taps: Taps) -> Array:
    at, weights = taps
    shape = [1] * array.ndim
    shape[axis] = len(at)
    exact = array.dtype == np.uint8
    # int32 holds 255 * 2**22 * the largest sum of positive weights (1.3)
    kind: type[np.generic] = np.int32 if exact else np.float64
    if exact:
        fixed = weights * (1 << FIXED_BITS)
        weights = np.trunc(fixed + np.copysign(0.5, fixed))
    total: Array = np.zeros(
        (*array.shape[:axis], len(at), *array.shape[axis + 1 :]), kind
    )
    if exact:
        total += 1 << (FIXED_BITS - 1)
    for tap in range(at.shape[1]):
        weight = weights[:, tap].astype(kind).reshape(shape)
        total += np.take(array, at[:, tap], axis=axis) * weight
    if exact:
        total = np.clip(total >> FIXED_BITS, 0, 255)
    return total.astype(array.dtype)


class CenterCrop(ArrayStep):
    """The middle ``[height, width]``; an odd rest is cut from the end."""

    word: ClassVar = "center_crop"
    shorthand: ClassVar = "size"
    usage: ClassVar = "[height, width]"
    size: Size

    def __call__(self, array: Array) -> Array:
        """HW or HWC of that size."""
        check_image(array)
        height, width = self.size
        if array.shape[0] < height or array.shape[1] < width:
            raise StepError(
                f"expected at least {height} x {width}, found shape {list(array.shape)}"
            )
        top, left = (array.shape[0] - height) // 2, (array.shape[1] - width) // 2
        return np.ascontiguousarray(
            array[top : top + height, left : left + width]
        )  # fmt: skip


class Pad(ArrayStep):
    """Up to ``[height, width]`` with one value: around the image or after it."""

    word: ClassVar = "pad"
    shorthand: ClassVar = "size"
    usage: ClassVar = (
        "[height, width] or {size = [height, width], value = 0, at = center|end}"
    )
    size: Size
    value: Finite = 0.0
    at: Literal["center", "end"] = "center"

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if abs(self.value) > np.finfo(np.float32).max:
            raise ValueError(f"value {self.value} does not fit float32")
        return self

    def __call__(self, array: Array) -> Array:
        """HW or HWC of that size; the dtype must hold ``value``."""
        check_image(array)
        more = [want - have for want, have in zip(self.size, array.shape, strict=False)]
        if min(more) < 0:
            raise StepError(
                f"expected at most {list(self.size)}, found shape {list(array.shape)}"
            )
        if array.dtype.kind != "f" and not _holds(array.dtype, self.value):
            raise StepError(f"{array.dtype} cannot hold the value {self.value}")
        check_elements(self.size[0] * self.size[1] * math.prod(array.shape[2:]))
        before = [rest // 2 if self.at == "center" else 0 for rest in more]
        widths = [(b, m - b) for b, m in zip(before, more, strict=True)]
        widths += [(0, 0)] * (array.ndim - 2)
        return np.pad(array, widths, constant_values=array.dtype.type(self.value))


def _holds(dtype: np.dtype[Any], value: float) -> bool:
    if dtype.kind == "b":
        return value in (0.0, 1.0)
    info = np.iinfo(dtype)
    return value == int(value) and info.min <= value <= info.max


def check_image(array: Array) -> None:
    """Refuse what is not HW or HWC with pixels.

    Raises:
        StepError: another rank, or a side of length 0.
    """
    check_rank(array, (2, 3), "an image [height, width] or [height, width, channels]")
    if 0 in array.shape:
        raise StepError(f"expected pixels, found shape {list(array.shape)}")


STEPS = (DecodeImage, Resize, CenterCrop, Pad)
