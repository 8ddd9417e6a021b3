"""ONNX operators that move, select and reshape, and those that compute with sizes.

A reshape of an exported graph often names sizes that are not fixed by nature: the batch
it was exported with, the channels of the layer before. :func:`open_shape` puts those
back: the first size is taken from the input where it is the same, and -1 stands where
axes are merged or split. So a graph of batch 1 runs on any batch where that has a
meaning, and a pruned layer does not break the reshape after it.
"""

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from onnx import TensorProto

from .torched_layers import embedding, wrapped
from .torched_site import Computed, Constant, Dims, Site, Value, dtype_of


def reshape(at: Site) -> Value:
    """Reshape."""
    value = at.value(1)
    target: list[Any] = (
        list(value.sizes) if isinstance(value, Dims) else at.constant(1).tolist()
    )
    source = at.shape(0)
    if not at.get("allowzero", 0):
        target = [
            at.size(0, place) if isinstance(size, int) and size == 0 else size
            for place, size in enumerate(target)
        ]
    known = value.example if isinstance(value, Dims) else at.constant(1).tolist()
    known = [size if size else source[place] for place, size in enumerate(known)]
    result = tuple(torch.empty(source, device="meta").reshape(known).shape)
    return _reshaped(at, target, result)


def _reshaped(at: Site, target: list[Any], result: tuple[int, ...]) -> Value:
    source = at.shape(0)
    opened = open_shape(source, target, result)
    if opened and opened[0] is None:
        if len(opened) == 2 and opened[1] == -1:
            return at.call(torch.flatten, at.arg(0), 1)
        opened[0] = at.size(0, 0)
    return at.call(torch.reshape, at.arg(0), tuple(opened))


def open_shape(
    source: Sequence[int], target: Sequence[Any], result: Sequence[int]
) -> list[Any]:
    """``target`` with fewer sizes nailed down.

    Args:
        source: the shape of what is reshaped, for the example.
        target: sizes, -1, or nodes that give a size.
        result: what ``target`` comes to for the example.

    Returns:
        ``target`` with at most one -1; None in the first place means: the first size
        of what is reshaped.
    """
    found = list(target)
    if not found or not source or 0 in source:
        return found
    fixed = [place for place, size in enumerate(found) if isinstance(size, int)]
    if 0 in fixed and source[0] == result[0]:
        found[0] = None
        fixed.remove(0)
    if any(isinstance(size, int) and size == -1 for size in found) or not fixed:
        return found
    same = 0
    while same < min(len(source), len(result)) and source[same] == result[same]:
        same += 1
    later = [place for place in fixed if place >= same]
    if later:
        found[later[0]] = -1
    return found


def flatten(at: Site) -> Value:
    """Flatten to a matrix."""
    shape = at.shape(0)
    axis = at.axis(1)
    if axis == 1:
        return at.call(torch.flatten, at.arg(0), 1)
    result = (math.prod(shape[:axis]), math.prod(shape[axis:]))
    return _reshaped(at, list(result), result)


def transpose(at: Site) -> Value:
    """Transpose."""
    order = at.get("perm", list(reversed(range(len(at.shape(0))))))
    return at.call(torch.permute, at.arg(0), tuple(order))


def squeeze(at: Site) -> Value:
    """Squeeze."""
    shape = at.shape(0)
    axes = at.numbers(1, "axes")
    if axes is None:
        axes = [place for place, size in enumerate(shape) if size == 1]
    return at.call(torch.squeeze, at.arg(0), tuple(one % len(shape) for one in axes))


def unsqueeze(at: Site) -> Value:
    """Unsqueeze."""
    axes = at.numbers(1, "axes") or []
    rank = len(at.shape(0)) + len(axes)
    node = at.arg(0)
    for axis in sorted(one % rank for one in axes):
        node = at.building.call(torch.unsqueeze, node, axis)
    return Computed(node)


def concat(at: Site) -> Value:
    """Concat."""
    return at.call(torch.cat, at.args(), at.axis(0))


def split(at: Site) -> Value | list[Value]:
    """Split; equal parts stay equal when the axis becomes shorter."""
    axis, count = at.axis(0), len(at.node.output)
    size = at.shape(0)[axis]
    sizes = at.numbers(1, "split")
    if sizes is None:
        part = math.ceil(size / at.get("num_outputs", count))
        sizes = [min(part, size - start) for start in range(0, size, part)]
    if len(set(sizes)) == 1:
        return at.parts(at.call(torch.chunk, at.arg(0), len(sizes), axis), count)
    return at.parts(at.call(torch.split, at.arg(0), list(sizes), axis), count)


def slice_(at: Site) -> Value:
    """Slice; its bounds may be sizes."""
    starts, ends = _numbers(at, 1), _numbers(at, 2)
    rank = len(at.shape(0))
    axes = at.numbers(3) or list(range(len(starts)))
    steps = at.numbers(4) or [1] * len(starts)
    node = at.arg(0)
    pieces = [slice(None)] * rank
    for place, axis in enumerate(one % rank for one in axes):
        size, step = at.shape(0)[axis], steps[place]
        if step < 0:
            chosen = range(size)[_bounds(at, starts, ends, step, place)]
            node = at.building.call(picked, node, axis, list(chosen))
            continue
        start, end = starts[place], ends[place]
        first = None if isinstance(start, int) and start in (0, -size) else start
        last = None if isinstance(end, int) and end >= size else end
        pieces[axis] = slice(first, last, None if step == 1 else step)
    if all(piece == slice(None) for piece in pieces):
        return Computed(node)
    return at.call(operator.getitem, node, tuple(pieces))


def _bounds(at: Site, starts: Any, ends: Any, step: int, place: int) -> slice:
    """ONNX's bounds of a backward slice in Python's words."""
    if not (isinstance(starts[place], int) and isinstance(ends[place], int)):
        raise at.refusal("a backward slice between computed bounds")
    end = ends[place]
    # what is beyond the start, ONNX writes as a large negative number
    return slice(starts[place], None if end < -(2**30) else end, step)


def _numbers(at: Site, place: int) -> list[Any]:
    value = at.value(place)
    if isinstance(value, Dims):
        return list(value.sizes)
    found: list[Any] = at.constant(place).reshape(-1).tolist()
    return found


def picked(x: Any, axis: int, places: Sequence[int]) -> Any:
    """These places of one axis."""
    return torch.index_select(x, axis, torch.tensor(places, device=x.device))


def gather(at: Site) -> Value:
    """Gather: along one axis."""
    rank = len(at.shape(0))
    axis = at.axis(0, rank)
    if isinstance(at.value(1), Computed):
        data = at.value(0)
        rows = at.layers and rank == 2 and axis == 0
        if rows and isinstance(data, Constant) and data.tensor.is_floating_point():
            return embedding(at)
        return at.call(gathered, at.arg(0), at.arg(1), axis)
    places = at.constant(1)
    if places.dim() == 0:
        return at.call(torch.select, at.arg(0), axis, int(places))
    size = at.shape(0)[axis]
    if places.dim() == 1:
        return at.call(picked, at.arg(0), axis, [one % size for one in places.tolist()])
    return at.call(gathered, at.arg(0), at.arg(1), axis)


def gathered(x: Any, places: Any, axis: int) -> Any:
    """Slices of ``x`` along ``axis``, in the shape of ``places``."""
    flat = wrapped(places.reshape(-1).long(), x.size(axis))
    found = torch.index_select(x, axis, flat)
    return found.reshape((*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]))


def gather_elements(at: Site) -> Value:
    """GatherElements."""
    return at.call(elements, at.arg(0), at.axis(0), at.arg(1))


def elements(x: Any, axis: int, places: Any) -> Any:
    """One element per place."""
    return torch.gather(x, axis, wrapped(places.long(), x.size(axis)))


def expand(at: Site) -> Value:
    """Expand; axes that keep their size are left open."""
    value = at.value(1)
    target = _numbers(at, 1)
    example = value.example if isinstance(value, Dims) else target
    shape = at.shape(0)
    missing = len(target) - len(shape)
    sizes: list[Any] = [] if missing >= 0 else [-1] * -missing
    for place, size in enumerate(target):
        own = shape[place - missing] if place >= missing else None
        known = example[place]
        stays = own is not None and known in (1, own) and (own != 1 or known == 1)
        sizes.append(-1 if stays else size)
    return at.call(torch.Tensor.expand, at.arg(0), tuple(sizes))


def tile(at: Site) -> Value:
    """Tile."""
    return at.call(torch.tile, at.arg(0), tuple(_numbers(at, 1)))


def constant_of_shape(at: Site) -> Value:
    """ConstantOfShape of a size that is not known yet."""
    value = at.get("value", torch.zeros(1))
    number = value.reshape(-1)[0]
    return at.call(
        torch.full, tuple(_numbers(at, 0)), number.item(), dtype=number.dtype
    )


def range_(at: Site) -> Value:
    """Range between sizes."""
    start, end, step = (_numbers(at, place)[0] for place in range(3))
    return at.call(torch.arange, start, end, step)


def depth_to_space(at: Site) -> Value:
    """DepthToSpace, depth first or columns first."""
    first = at.get("mode", b"DCR") == b"CRD"
    return at.call(to_space, at.arg(0), at.get("blocksize"), first)


def to_space(x: Any, block: int, columns_first: bool) -> Any:
    """Channels as blocks of the image."""
    if columns_first:
        return torch.nn.functional.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    blocks = x.reshape(n, block, block, c // block**2, h, w)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, -1, h * block, w * block)


def space_to_depth(at: Site) -> Value:
    """SpaceToDepth."""
    return at.call(to_depth, at.arg(0), at.get("blocksize"))


def to_depth(x: Any, block: int) -> Any:
    """Blocks of the image as channels."""
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // block, block, w // block, block)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, -1, h // block, w // block)


SHAPES = {
    "Concat": concat, "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space, "Expand": expand, "Flatten": flatten,
    "Gather": gather, "GatherElements": gather_elements, "Range": range_,
    "Reshape": reshape, "Slice": slice_, "SpaceToDepth": space_to_depth,
    "Split": split, "Squeeze": squeeze, "Tile": tile, "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}  # fmt: skip


def shape_of(at: Site) -> Value:
    """Shape: every size stays a question to the tensor."""
    rank = len(at.shape(0))
    start, end, _ = slice(at.get("start", 0), at.get("end")).indices(rank)
    places = range(start, end)
    if isinstance(at.value(0), Computed):
        return Dims(tuple(at.size(0, place) for place in places))
    return Dims(tuple(at.shape(0)[place] for place in places))


def _sizes(at: Site, place: int) -> Dims:
    value = at.value(place)
    if isinstance(value, Dims):
        return value
    tensor = at.constant(place)
    return Dims(tuple(tensor.reshape(-1).tolist()), tensor.dim() == 0)


def dims_gather(at: Site) -> Value:
    """Gather of sizes."""
    sizes, places = _sizes(at, 0).sizes, at.constant(1)
    found = tuple(sizes[place] for place in places.reshape(-1).tolist())
    return Dims(found, places.dim() == 0)


def dims_slice(at: Site) -> Value:
    """Slice of sizes."""
    start, end, step = (at.numbers(place) or [1] for place in (1, 2, 4))
    return Dims(_sizes(at, 0).sizes[slice(start[0], end[0], step[0])])


def dims_concat(at: Site) -> Value:
    """Concat of sizes."""
    return Dims(
        tuple(
            size for place in range(len(at.values)) for size in _sizes(at, place).sizes
        )
    )


def dims_unsqueeze(at: Site) -> Value:
    """A number becomes a list of one."""
    return Dims(_sizes(at, 0).sizes)


def dims_squeeze(at: Site) -> Value:
    """A list of one becomes a number."""
    return Dims(_sizes(at, 0).sizes, scalar=True)


def dims_same(at: Site) -> Value:
    """Identity."""
    return _sizes(at, 0)


def dims_cast(at: Site) -> Value:
    """Cast between integers; as another type sizes are those of the example."""
    if at.get("to") in (TensorProto.INT32, TensorProto.INT64):
        return _sizes(at, 0)
    tensor = at.constant(0).to(dtype_of(at, at.get("to")))
    return Constant(tensor, at.node.output[0])


def dims_reshape(at: Site) -> Value:
    """Reshape between a number and a list of one."""
    return Dims(_sizes(at, 0).sizes, scalar=not at.constant(1).numel())


def _arithmetic(at: Site, function: Any) -> Value:
    left, right = _sizes(at, 0), _sizes(at, 1)
    count = max(len(left.sizes), len(right.sizes))

    def one(place: int) -> Any:
        pair = [side.sizes[place % len(side.sizes)] for side in (left, right)]
        if all(isinstance(size, int) for size in pair):
            return function(*pair)
        return at.building.call(function, *pair)

    return Dims(tuple(map(one, range(count))), left.scalar and right.scalar)


DIMS = {
    "Add": lambda at: _arithmetic(at, operator.add),
    "Cast": dims_cast,
    "Concat": dims_concat,
    "Div": lambda at: _arithmetic(at, operator.floordiv),
    "Gather": dims_gather,
    "Identity": dims_same,
    "Mul": lambda at: _arithmetic(at, operator.mul),
    "Reshape": dims_reshape,
    "Slice": dims_slice,
    "Squeeze": dims_squeeze,
    "Sub": lambda at: _arithmetic(at, operator.sub),
    "Unsqueeze": dims_unsqueeze,
}
"""Operators between sizes alone."""
OF_SIZES = frozenset({"ConstantOfShape", "Range"})
"""Operators of :data:`SHAPES` whose inputs are sizes and whose output is a tensor."""
