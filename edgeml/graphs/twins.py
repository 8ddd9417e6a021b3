"""Which tensors of an ONNX graph and of a ``.tflite`` made of it hold the same values.

Converters rename, fuse and transpose, so names say nothing; values do. The rules:

1. Both run on the same feeds. Two tensors are twins when size, sum, sum of magnitudes,
   sum of squares, least and greatest agree on every feed: none of these depends on the
   order of dimensions.
2. An ONNX node *ends* in the first operator whose output is a twin of its own; a node
   that was fused away ends where its readers do, as long as no other weighted layer is
   passed on the way.
3. A weighted layer that ends nowhere is *lost*: its weights or its bias did not arrive,
   or the converter rewrote it beyond recognition. Where the outputs agree it is the
   latter, and where they do not the first one lost is to blame.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from device_agent.contract.tensors import Array, Feeds

from ..errors import BackendError, one_line
from ..model import Model
from .conversion import label_of, labelled
from .preparation import normalized
from .tflite import Inside

LIKE = 1e-4
"""How far marks of twins may be apart, in parts of the tensor's own magnitude."""
WEIGHTED = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Attention"}
)


@dataclass(frozen=True)
class Twins:
    """What became of the nodes of an ONNX graph.

    ``homes``: label of a node → place of the operator in which it ends. ``tensors``:
    tensor of the graph → place of the operator that makes its twin. ``lost``: the
    weighted layers that end nowhere, in the order of the graph. ``errors``: output →
    largest difference, in parts of its largest magnitude.
    """

    homes: dict[str, int]
    tensors: dict[str, int]
    lost: tuple[str, ...]
    errors: dict[str, float]


def compare(model: Model, inside: Inside, feeds: Sequence[Feeds]) -> Twins:
    """Run both on ``feeds`` and look for twins.

    Args:
        model: a model at level graph.
        inside: the ``.tflite``; its signature has the graph's names, or names of its
            own in the same order.
        feeds: a few samples of batch 1.

    Raises:
        BackendError: one of the two does not run.
    """
    nodes = labelled(model)
    names = [name for node in nodes for name in node.output if name]
    errors = {spec.name: 0.0 for spec in model.outputs}
    theirs: dict[str, list[Array]] = {name: [] for name in names}
    ours: dict[int, list[Array]] = {index: [] for index in inside.made}
    session = _exposed(model, names)
    for feed in feeds:
        wanted = _run(session, names, feed)
        given = dict(zip(inside.inputs, _in_order(model, feed), strict=True))
        read = inside.run(given)
        for spec, index in zip(model.outputs, inside.outputs.values(), strict=True):
            apart = difference(wanted[spec.name], read(index))
            errors[spec.name] = max(errors[spec.name], apart)
        for name, array in wanted.items():
            theirs[name].append(_mark(array))
        for index in ours:
            ours[index].append(_mark(read(index)))
    tensors = _matches(theirs, ours, inside)
    homes = _homes(nodes, tensors)
    lost = tuple(
        label
        for node in nodes
        if is_weighted(model, node) and (label := label_of(node)) not in homes
    )
    return Twins(homes, tensors, lost, errors)


def is_weighted(model: Model, node: Any) -> bool:
    """Whether a node multiplies with constants of the graph."""
    constants = {one.name for one in model.payload.graph.initializer}
    constants |= {
        name
        for other in model.payload.graph.node
        if other.op_type == "Constant"
        for name in other.output
    }
    return node.op_type in WEIGHTED and bool(constants.intersection(node.input))


def difference(wanted: Array, found: Array) -> float:
    """Largest difference in parts of the largest magnitude wanted.

    Infinite where the sizes differ, or one is not finite where the other is.
    """
    if wanted.size != found.size:
        return float("inf")
    left = wanted.astype(np.float64).ravel()
    right = found.astype(np.float64).ravel()
    finite = np.isfinite(left)
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True):
        return float("inf")
    if not np.isfinite(right[finite]).all():
        return float("inf")
    size = np.abs(left[finite]).max(initial=0.0)
    apart = np.abs(left[finite] - right[finite]).max(initial=0.0)
    return float(apart / size) if size else float(apart)


def _in_order(model: Model, feed: Feeds) -> list[Array]:
    return [feed[spec.name] for spec in model.inputs]


def _exposed(model: Model, names: Iterable[str]) -> Any:
    """The ONNX graph in ONNX Runtime, not optimised, every tensor an output."""
    import onnx
    import onnxruntime as ort

    proto = normalized(model.payload)
    there = {one.name for one in proto.graph.output}
    for name in names:
        if name not in there:
            proto.graph.output.append(onnx.ValueInfoProto(name=name))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise BackendError(f"ONNX Runtime: {one_line(error)}") from error


def _run(session: Any, names: Sequence[str], feed: Feeds) -> dict[str, Array]:
    try:
        values = session.run(list(names), dict(feed))
    except Exception as error:
        raise BackendError(f"ONNX Runtime: {one_line(error)}") from error
    return {
        name: np.asarray(value)
        for name, value in zip(names, values, strict=True)
        if isinstance(value, np.ndarray)
    }


def _mark(array: Array) -> Array:
    """Figures that do not depend on the order of dimensions: size, sums, extremes."""
    if array.dtype.kind != "f" or not array.size:
        return np.zeros(6)
    wide = array.astype(np.float64).ravel()
    if not np.isfinite(wide).all():
        return np.zeros(6)
    return np.array(
        [wide.size, wide.sum(), np.abs(wide).sum(), wide @ wide, wide.min(), wide.max()]
    )


def _matches(
    theirs: dict[str, list[Array]], ours: dict[int, list[Array]], inside: Inside
) -> dict[str, int]:
    """ONNX tensor → place of the first operator that makes a twin of it."""
    marks = np.stack([np.stack(found) for found in ours.values()])
    places = [inside.made[index].place for index in ours]
    order = sorted(range(len(places)), key=places.__getitem__)
    marks, places = marks[order], [places[one] for one in order]
    found: dict[str, int] = {}
    for name, values in theirs.items():
        if not values:
            continue
        wanted = np.stack(values)
        scale = wanted[:, [0, 2, 2, 3, 5, 5]].copy()
        scale[:, 4] = scale[:, 5] = np.abs(wanted[:, 4:]).max(axis=1)
        if not (wanted[:, 0] > 0).all() or not (scale[:, 1] > 0).any():
            continue  # not numbers, or nothing but zeros: twins of anything
        near = (np.abs(marks - wanted) <= LIKE * scale).all(axis=(1, 2))
        if near.any():
            found[name] = places[int(np.argmax(near))]
    return found


def _homes(nodes: Sequence[Any], matches: dict[str, int]) -> dict[str, int]:
    """Label → operator, by a node's own twin or, fused away, by that of its readers."""
    readers: dict[str, list[Any]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    homes: dict[str, int] = {}
    for node in reversed(nodes):
        own = [matches[name] for name in node.output if name in matches]
        after = [
            homes[label_of(reader)]
            for name in node.output
            for reader in readers.get(name, ())
            if reader.op_type not in WEIGHTED and label_of(reader) in homes
        ]
        if own or after:
            homes[label_of(node)] = min(own or after)
    return homes
