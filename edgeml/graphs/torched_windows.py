"""ONNX operators that slide, pad and resize: pooling, Pad, Resize.

Padding that torch cannot express in the operator itself (uneven, or wider than half a
window) is done before it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from .torched_site import Computed, Site, Value

_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}
_MEAN = {
    1: functional.adaptive_avg_pool1d,
    2: functional.adaptive_avg_pool2d,
    3: functional.adaptive_avg_pool3d,
}
_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}

RUNS_MAX = 5
"""Runs of places up to which an axis is cut and joined."""


def edges(at: Site, kernel: Sequence[int]) -> list[int]:
    """Padding at the starts, then at the ends, ``auto_pad`` resolved."""
    rank = len(kernel)
    auto = at.get("auto_pad", b"NOTSET").decode()
    if auto == "VALID":
        return [0] * 2 * rank
    if auto == "NOTSET":
        return list(at.get("pads", [0] * 2 * rank))
    strides, dilations = (at.get(k, [1] * rank) for k in ("strides", "dilations"))
    starts, ends = [], []
    for place, size in enumerate(at.shape(0)[2:]):
        reach = (math.ceil(size / strides[place]) - 1) * strides[place]
        reach += (kernel[place] - 1) * dilations[place] + 1
        total = max(reach - size, 0)
        less, more = total // 2, total - total // 2
        starts.append(less if auto == "SAME_UPPER" else more)
        ends.append(more if auto == "SAME_UPPER" else less)
    return starts + ends


def is_symmetric(pads: Sequence[int]) -> bool:
    """Whether every axis has as much at its start as at its end."""
    half = len(pads) // 2
    return list(pads[:half]) == list(pads[half:])


def pad_ends(pads: Sequence[int]) -> list[int]:
    """ONNX's order of paddings in torch's: last axis first, start and end together."""
    half = len(pads) // 2
    return [
        one for axis in reversed(range(half)) for one in (pads[axis], pads[half + axis])
    ]


def max_pool(at: Site) -> Value:
    """MaxPool; its second output, the indices, is not made."""
    kernel = at.get("kernel_shape")
    rank, x = len(kernel), at.arg(0)
    _known_rank(at, rank)
    pads = edges(at, kernel)
    if not _fits(pads, kernel):
        x = at.call(functional.pad, x, pad_ends(pads), "constant", -math.inf).node
        pads = [0] * 2 * rank
    return at.call(
        _MAX[rank], x, tuple(kernel), tuple(at.get("strides", [1] * rank)),
        tuple(pads[:rank]), tuple(at.get("dilations", [1] * rank)),
        bool(at.get("ceil_mode", 0)),
    )  # fmt: skip


def average_pool(at: Site) -> Value:
    """AveragePool."""
    kernel = at.get("kernel_shape")
    rank = len(kernel)
    _known_rank(at, rank)
    if any(one != 1 for one in at.get("dilations", [1])):
        raise at.refusal("torch has no dilated average pooling")
    pads, stride = edges(at, kernel), tuple(at.get("strides", [1] * rank))
    ceil, count = bool(at.get("ceil_mode", 0)), bool(at.get("count_include_pad", 0))
    if _fits(pads, kernel):
        return at.call(
            _AVERAGE[rank], at.arg(0), tuple(kernel), stride, tuple(pads[:rank]),
            ceil, count,
        )  # fmt: skip
    return at.call(
        uneven_average, at.arg(0), tuple(kernel), stride, pad_ends(pads), ceil, count
    )


def uneven_average(
    x: Any,
    kernel: Sequence[int],
    stride: Sequence[int],
    pads: Sequence[int],
    ceil: bool,
    count_pads: bool,
) -> Any:
    """Averages over windows of a padded tensor, with or without what was padded."""
    pool = _AVERAGE[len(kernel)]
    mean = pool(functional.pad(x, pads), kernel, stride, 0, ceil)
    if count_pads:
        return mean
    ones = torch.ones_like(x[:1, :1])
    return mean / pool(functional.pad(ones, pads), kernel, stride, 0, ceil)


def _fits(pads: Sequence[int], kernel: Sequence[int]) -> bool:
    """Whether torch's pooling takes this padding itself."""
    return is_symmetric(pads) and all(
        0 <= 2 * pad <= size for pad, size in zip(pads, kernel, strict=False)
    )


def _known_rank(at: Site, rank: int) -> None:
    if rank not in _MAX:
        raise at.refusal(f"it has {rank} spatial dimensions; torch has 1 to 3")


def global_average_pool(at: Site) -> Value:
    """GlobalAveragePool."""
    rank = len(at.shape(0)) - 2
    _known_rank(at, rank)
    return at.call(_MEAN[rank], at.arg(0), (1,) * rank)


def global_max_pool(at: Site) -> Value:
    """GlobalMaxPool."""
    axes = tuple(range(2, len(at.shape(0))))
    return at.call(torch.amax, at.arg(0), axes, True)


def pad(at: Site) -> Value:
    """Pad, in all its modes."""
    rank = len(at.shape(0))
    given = at.numbers(1) or []
    axes = at.numbers(3)
    places = range(rank) if axes is None else [one % rank for one in axes]
    pads = [0] * 2 * rank
    for place, axis in enumerate(places):
        pads[axis], pads[rank + axis] = given[place], given[place + len(given) // 2]
    mode = at.get("mode", b"constant").decode()
    if mode == "constant":
        value = at.constant(2)
        number = 0 if value is None else value.item()
        return at.call(functional.pad, at.arg(0), pad_ends(pads), "constant", number)
    if min(pads) < 0:
        raise at.refusal(f"negative padding in mode {mode}")
    node = at.arg(0)
    for axis, size in enumerate(at.shape(0)):
        if pads[axis] or pads[rank + axis]:
            ends = (pads[axis], pads[rank + axis])
            found = np.pad(np.arange(size), ends, mode).tolist()
            node = at.call(taken, node, axis, found).node
    return Computed(node)


def taken(x: Any, axis: int, places: Sequence[int]) -> Any:
    """These places of one axis.

    Few runs of neighbours are slices and mirrors: exported, a list of places would be a
    constant as long as the axis, more than all weights of a network that reads sound.
    """
    runs = runs_of(places)
    if len(runs) <= RUNS_MAX:
        return torch.cat([_run(x, axis, *run) for run in runs], axis)
    return torch.index_select(x, axis, torch.tensor(places, device=x.device))


def _run(x: Any, axis: int, start: int, count: int, step: int) -> Any:
    if step == 0:
        sizes = [-1] * x.dim()
        sizes[axis] = count
        return x.narrow(axis, start, 1).expand(sizes)
    if step == 1:
        return x.narrow(axis, start, count)
    return x.narrow(axis, start - count + 1, count).flip(axis)


def runs_of(places: Sequence[int]) -> list[tuple[int, int, int]]:
    """Places as runs: where each starts, how long it is, and its step (1, 0, -1).

    >>> runs_of([2, 1, 0, 1, 2, 3, 3])
    [(2, 3, -1), (1, 3, 1), (3, 1, 1)]
    """
    runs: list[tuple[int, int, int]] = []
    for place in places:
        if runs:
            start, count, step = runs[-1]
            here = place - (start + (count - 1) * step)
            if here == step or (count == 1 and abs(here) <= 1):
                runs[-1] = (start, count + 1, here)
                continue
        runs.append((place, 1, 1))
    return runs


def resize(at: Site) -> Value:
    """Resize: nearest in every way, linear and cubic in the ways torch has."""
    shape, rank = at.shape(0), len(at.shape(0))
    wanted, scales = _sizes(at)
    axes = [axis for axis in range(rank) if wanted[axis] != shape[axis]]
    mode = at.get("mode", b"nearest").decode()
    way = at.get("coordinate_transformation_mode", b"half_pixel").decode()
    if at.get("antialias", 0) or way == "tf_crop_and_resize":
        raise at.refusal(f"antialias and {way} are unknown to torch")
    if mode == "nearest":
        return _nearest(at, axes, wanted, scales, way)
    if any(axis < 2 for axis in axes) or way not in (
        "half_pixel", "pytorch_half_pixel", "align_corners",
    ):  # fmt: skip
        raise at.refusal(f"{mode} with {way} over axes {axes}")
    if mode == "cubic" and (rank != 4 or at.get("exclude_outside", 0)):
        raise at.refusal("cubic needs two spatial dimensions and all neighbours")
    if abs(at.get("cubic_coeff_a", -0.75) + 0.75) > 1e-9 or rank not in _LINEAR:
        raise at.refusal(f"{mode} over {rank} dimensions; torch has 3 to 5, a = -0.75")
    corners = way == "align_corners"
    exact = corners or all(scales[one] * shape[one] == wanted[one] for one in axes)
    return at.call(
        functional.interpolate, at.arg(0),
        size=tuple(wanted[2:]) if exact else None,
        scale_factor=None if exact else tuple(scales[2:]),
        mode="bicubic" if mode == "cubic" else _LINEAR[rank], align_corners=corners,
    )  # fmt: skip


def _sizes(at: Site) -> tuple[list[int], list[float]]:
    """The wanted shape and the scales, for all axes."""
    shape = at.shape(0)
    axes = [one % len(shape) for one in at.get("axes", range(len(shape)))]
    sizes, scales = at.numbers(3), at.numbers(2)
    wanted, factors = list(shape), [1.0] * len(shape)
    if at.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        raise at.refusal("keep_aspect_ratio_policy is unknown to torch")
    for place, axis in enumerate(axes):
        if sizes:
            wanted[axis] = sizes[place]
            factors[axis] = sizes[place] / shape[axis]
        elif scales:
            factors[axis] = scales[place]
            wanted[axis] = math.floor(shape[axis] * scales[place])
    return wanted, factors


def _nearest(
    at: Site,
    axes: Sequence[int],
    wanted: Sequence[int],
    scales: Sequence[float],
    way: str,
) -> Value:
    shape, rule = at.shape(0), at.get("nearest_mode", b"round_prefer_floor").decode()
    places = {
        axis: _nearest_places(shape[axis], wanted[axis], scales[axis], way, rule)
        for axis in axes
    }
    repeats = all(
        wanted[axis] % shape[axis] == 0
        and found
        == [one // (wanted[axis] // shape[axis]) for one in range(wanted[axis])]
        for axis, found in places.items()
    )
    if repeats and len(shape) in _LINEAR and all(axis > 1 for axis in axes):
        return at.call(
            functional.interpolate, at.arg(0), size=tuple(wanted[2:]), mode="nearest"
        )
    node = at.arg(0)
    for axis, found in places.items():
        node = at.call(taken, node, axis, found).node
    return Computed(node)


def _nearest_places(
    size: int, wanted: int, scale: float, way: str, rule: str
) -> list[int]:
    """Where ONNX takes each element from."""
    place = np.arange(wanted, dtype=np.float64)
    if way == "asymmetric":
        x = place / scale
    elif way == "align_corners":
        x = place * ((size - 1) / max(wanted - 1, 1))
    elif way == "half_pixel_symmetric":
        adjusted = wanted / (scale * size)
        x = size / 2 * (1 - adjusted) + (place + 0.5) / scale - 0.5
    elif way == "pytorch_half_pixel" and wanted == 1:
        x = np.zeros(1)
    else:
        x = (place + 0.5) / scale - 0.5
    rules: dict[str, Callable[[Any], Any]] = {
        "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
        "floor": np.floor,
        "ceil": np.ceil,
    }
    found = np.clip(rules[rule](x), 0, size - 1).astype(int)
    return [int(one) for one in found]


WINDOWS = {
    "AveragePool": average_pool, "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool, "MaxPool": max_pool, "Pad": pad,
    "Resize": resize,
}  # fmt: skip
