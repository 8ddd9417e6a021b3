"""An int8 ``.tflite`` as the ONNX graph that it was made of, and what that learns back.

A file cannot be trained, the graph behind it can. The rules:

1. What the file rounds is rounded in the graph (QDQ), with the file's own scales and
   zero points: an input or a computed tensor when its twin in the file is int8, weights
   and other constants when their values are those of the file. So what LiteRT fuses is
   rounded once, after its activation; what stays in float there does so here.
2. Tensors with the same scale and zero point in the file share them in the graph:
   pooling, reshaping and concatenation want it so.
3. An average pool averages the integers and rounds halves away from zero, as LiteRT's
   does; ONNX's would round what they stand for, halves to even.
4. What was learned becomes a float graph whose weights lie on the trained grid, and
   ranges by which the quantizer comes to the trained scales. :meth:`Mirror.check`
   sees to it that the integers of the new file are the trained ones.

Biases stay in float: the training rounds them to the grid of the runtime's 32 bits.
A layer whose weights the converter changed is an error: it would be trained wrongly.

Convolutions, matrix products, sums, products and pools then give LiteRT's very
integers, or one beside where a number is next to a tie. Two things are inherent: its
softmax takes exponentials from a table; and what the converter composes of several
operators (hard swish, layer normalization) is rounded between them, where the graph has
no tensor. Two to three steps of the output were seen behind those.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from device_agent.contract.tensors import Array

from ..errors import BackendError
from .conversion import label_of
from .lowering import Lowered
from .preparation import normalized
from .protos import describe
from .tflite import Inside, Op, Tensor
from .twins import WEIGHTED

SYMMETRIC = frozenset(
    {"BATCH_MATMUL", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED",
     "TRANSPOSE_CONV"}
)  # fmt: skip
"""Operators whose constants have the integers -127 to 127; all others' -128 to 127."""
MOVED = frozenset({"EXPAND_DIMS", "RESHAPE", "SQUEEZE", "TRANSPOSE"})
"""Operators whose output is a twin of what their input is a twin of."""
BEYOND = 1 + 1e-5
"""By so much an average is enlarged: a half is no tie any more, and nothing else is
rounded otherwise; pools have fewer than some hundred elements."""
ALIKE = 1e-5
"""How far scales that should be the same may be apart, in parts of them."""


@dataclass(frozen=True)
class Step:
    """How a tensor of a file is rounded.

    ``inside``: it is int8 itself, and there is no float beside it.
    """

    scale: float
    zero: int
    inside: bool

    def is_like(self, other: "Step") -> bool:
        """Whether they round alike."""
        near = math.isclose(self.scale, other.scale, rel_tol=ALIKE)
        return near and (self.zero, self.inside) == (other.zero, other.inside)


@dataclass(frozen=True)
class Constant:
    """A constant of the graph in the file: the input of which operator it is.

    ``axis``: of the channels in the graph; None: there is one scale. ``shape``: of the
    scales in the file, as they are broadcast. ``low``: the least integer.
    """

    place: int
    entry: int
    axis: int | None
    shape: tuple[int, ...]
    scale: Array
    zero: int
    low: int


class Mirror:
    """The QDQ graph of an int8 file.

    Args:
        graph: in float, prepared.
        lowered: the float file that was made of it.
        made: the int8 file that was made of that.

    Raises:
        BackendError: a layer with weights cannot be found in the file.
    """

    def __init__(self, graph: Any, lowered: Lowered, made: bytes) -> None:
        files = _Files(lowered, made)
        self._graph = graph
        self._initial = _initializers(graph)
        self._steps = files.steps()
        first: dict[tuple[float, int], str] = {}
        self._groups = {
            name: first.setdefault((step.scale, step.zero), name)
            for name, step in self._steps.items()
        }
        """Tensor of the file → the first one with its scale and zero point."""
        self._constants: dict[str, Constant] = {}
        for node in graph.graph.node:
            for name, constant in files.constants(node, self._initial):
                self._constants.setdefault(name, constant)
        self.proto = self._quantized(files)

    def floats(self, trained: Any) -> Any:
        """The float graph with what ``trained``, :attr:`proto` after QAT, has."""
        values = _initializers(trained)
        made = type(self._graph)()
        made.CopyFrom(self._graph)
        for tensor in made.graph.initializer:
            one, name = self._constants.get(tensor.name), tensor.name
            if one is not None:
                integers = values[f"{name}/int8"].astype(np.float64)
                scale = values[f"{name}/scale"].astype(np.float64)
                new = (integers - one.zero) * _along(scale, integers, one.axis)
            elif name in values:
                new = values[name]
            else:
                continue
            new = new.astype(self._initial[name].dtype)
            tensor.CopyFrom(numpy_helper.from_array(new, name))
        return made

    def spans(self, trained: Any) -> dict[str, tuple[float, float]]:
        """From what to what a file's computed tensors reach by the trained scales.

        Those of which the graph has none are not among them.

        Args:
            trained: :attr:`proto` after QAT.
        """
        values, found = _initializers(trained), {}
        for name, group in self._groups.items():
            if f"{group}/scale" in values:
                step, zero = values[f"{group}/scale"].item(), self._steps[name].zero
                found[name] = ((-128 - zero) * step, (127 - zero) * step)
        return found

    def limits(self, trained: Any, lowered: Lowered) -> dict[str, tuple[Array, Array]]:
        """The same of its constants, in the shape that the file has scales in.

        Args:
            trained: :attr:`proto` after QAT.
            lowered: the file that was made of :meth:`floats`.
        """
        values, inside = _initializers(trained), Inside(lowered.raw)
        found = {}
        for name, one in self._constants.items():
            step = values[f"{name}/scale"].astype(np.float64).reshape(one.shape)
            tensor = inside.tensors[inside.ops[one.place].inputs[one.entry]].name
            found[tensor] = ((one.low - one.zero) * step, (127 - one.zero) * step)
        return found

    def check(self, trained: Any, lowered: Lowered, made: bytes) -> None:
        """Nothing, when an int8 file has what was trained.

        Args:
            trained: :attr:`proto` after QAT.
            lowered: the float file that was made of :meth:`floats`.
            made: the int8 file that was made of that.

        Raises:
            BackendError: a scale, a zero point or integers differ; names the tensor.
        """
        values, files = _initializers(trained), _Files(lowered, made)
        steps = files.steps()
        for name in self.spans(trained):
            scale = values[f"{self._groups[name]}/scale"].item()
            wanted, found = replace(self._steps[name], scale=scale), steps.get(name)
            if found is None or not wanted.is_like(found):
                raise BackendError(f"{name}: trained as {wanted}, in LiteRT {found}")
        for name, one in self._constants.items():
            op = files.twin(files.exact.ops[one.place])
            assert op is not None, "its output has the same name in both"
            integers = files.rounded.stored(op.inputs[one.entry])
            if not np.array_equal(_sorted(integers), _sorted(values[f"{name}/int8"])):
                raise BackendError(f"{name}: its integers are not those trained")

    def _quantized(self, files: "_Files") -> Any:
        made = normalized(self._graph)
        graph, nodes = made.graph, list(made.graph.node)
        del graph.node[:]
        for group in dict.fromkeys(self._groups.values()):
            step = self._steps[group]
            _add(graph, np.array(step.scale, np.float32), f"{group}/scale")
            _add(graph, np.array(step.zero, np.int8), f"{group}/zero")
        for name, one in self._constants.items():
            graph.node.append(self._constant_node(graph, name, one))
        twins, rounded = files.twins(self._graph), files.moved(self._steps)
        steps = {name: rounded[one] for name, one in twins.items() if one in rounded}
        apart = {
            name: twins[name] for name, step in steps.items()
            if not self._steps[step].inside
        }  # fmt: skip
        groups = {name: self._groups[step] for name, step in steps.items()}
        for one in graph.input:
            if one.name in apart:
                pair = _pair(groups[one.name], one.name, f"{one.name}/rounded")
                graph.node.extend(pair)
        for node in nodes:
            known = groups.get(next(iter(node.input), ""))
            self._rewire(node, files, apart)
            pairs = []
            for place, name in enumerate(node.output):
                if name in apart:
                    pairs += _pair(groups[name], name, f"{name}/rounded")
                elif known and groups.get(name) == known and _averages(node):
                    pairs += _of_integers(graph, node, known)
                elif name in groups:
                    node.output[place] = f"{name}/exact"
                    pairs += _pair(groups[name], f"{name}/exact", name)
            graph.node.extend([node, *pairs])
        return normalized(made)

    def _rewire(self, node: Any, files: "_Files", apart: Mapping[str, str]) -> None:
        """Inputs of a node: the rounded ones, where its operator reads those."""
        home = files.home(node)
        exactly = set() if home is None else files.read_exactly(home)
        for place, name in enumerate(node.input):
            one = self._constants.get(name)
            constant = one is not None and home is not None and one.place == home.place
            if constant or (name in apart and apart[name] not in exactly):
                node.input[place] = f"{name}/rounded"

    def _constant_node(self, graph: Any, name: str, one: Constant) -> Any:
        values = self._initial[name].astype(np.float64)
        integers = np.rint(values / _along(one.scale, values, one.axis) + one.zero)
        _add(graph, integers.clip(one.low, 127).astype(np.int8), f"{name}/int8")
        _add(graph, one.scale.astype(np.float32), f"{name}/scale")
        _add(graph, np.full(one.scale.shape, one.zero, np.int8), f"{name}/zero")
        inputs = [f"{name}/{word}" for word in ("int8", "scale", "zero")]
        axis = {} if one.axis is None else {"axis": one.axis}
        return _node("DequantizeLinear", inputs, f"{name}/rounded", **axis)


class _Files:
    """A float file, and the int8 one that was made of it."""

    def __init__(self, lowered: Lowered, made: bytes) -> None:
        self._twins = lowered.twins
        self.exact, self.rounded = Inside(lowered.raw), Inside(made)

    def home(self, node: Any) -> Op | None:
        """The operator of the float file in which a node of the graph ends."""
        place = self._twins.homes.get(label_of(node))
        return None if place is None else self.exact.ops[place]

    def twin(self, op: Op) -> Op | None:
        """The operator of the int8 file that one of the float file became."""
        name = self.exact.tensors[op.outputs[0]].name
        tensors = self.rounded.tensors
        found = (
            one for one in self.rounded.ops if tensors[one.outputs[0]].name == name
        )
        return next(found, None)

    def twins(self, graph: Any) -> dict[str, str]:
        """Input or computed tensor of the graph → that of the float file."""
        ops, tensors = self.exact.ops, self.exact.tensors
        return {one.name: one.name for one in graph.graph.input} | {
            name: tensors[ops[place].outputs[0]].name
            for name, place in self._twins.tensors.items()
        }

    def moved(self, steps: Mapping[str, Step]) -> dict[str, str]:
        """Tensor of the float file → itself, or what it is moved to, if int8 there."""
        found = {name: name for name in steps}
        tensors = self.exact.tensors
        for op in reversed(self.exact.ops):
            after = found.get(tensors[op.outputs[0]].name)
            if op.name in MOVED and after is not None:
                found.setdefault(tensors[op.inputs[0]].name, after)
        return found

    def steps(self) -> dict[str, Step]:
        """Inputs and computed tensors that are rounded.

        What an operator makes keeps its name when it becomes int8; what stays in float
        is rounded into another tensor.
        """
        int8 = {
            one.name: one
            for one in self.rounded.tensors.values()
            if one.dtype is np.int8 and one.scales.size == 1
        }
        found = {}
        for index in (*self.exact.inputs.values(), *self.exact.made):
            name = self.exact.tensors[index].name
            one = int8.get(name) or int8.get(f"{name}_quantized")
            if one is not None:
                scale, zero = float(np.float32(one.scales[0])), int(one.zero_points[0])
                found[name] = Step(scale, zero, inside=name in int8)
        return found

    def read_exactly(self, op: Op) -> set[str]:
        """Tensors that an operator of the float file reads in float in the other."""
        twin, made = self.twin(op), self.rounded.made
        found = set()
        for index in () if twin is None else twin.inputs:
            while index in made and made[index].name in MOVED:
                index = made[index].inputs[0]
            is_copy = index in made and made[index].name in ("QUANTIZE", "DEQUANTIZE")
            if index in self.rounded.tensors and not is_copy:
                found.add(self.rounded.tensors[index].name)
        return found

    def constants(
        self, node: Any, initial: Mapping[str, Array]
    ) -> Iterator[tuple[str, Constant]]:
        """What a node reads of the graph's initializers that is int8.

        Raises:
            BackendError: there should be some, and they are not found.
        """
        names = [
            name
            for name in node.input
            if name in initial
            and initial[name].dtype == np.float32
            and initial[name].size > 1  # a single number is exact in int8 as well
        ]
        op = self.home(node)
        twin = None if op is None else self.twin(op)
        found = []
        if op is not None and twin is not None:
            every = [(name, self._constant(initial[name], op, twin)) for name in names]
            found = [(name, one) for name, one in every if one is not None]
            if not self.rounded.tensors[twin.outputs[0]].scales.size:
                names = []  # it stays in float
        if node.op_type in WEIGHTED and names and not found:
            raise BackendError(
                f"{describe(node)}: its weights are not found in the .tflite: the "
                "converter writes the layer in another way; it cannot be trained"
            )
        yield from found

    def _constant(self, values: Array, op: Op, twin: Op) -> Constant | None:
        """Which int8 input of an operator has these values; None: none has them."""
        for entry, index in enumerate(op.inputs):
            if not self.exact.is_constant(index):
                continue
            tensor = self.rounded.tensors[twin.inputs[entry]]
            there = self.exact.constant(index)
            if tensor.dtype is not np.int8 or not tensor.scales.size:
                continue
            if there.size != values.size or not _are_alike(there, values):
                continue
            axis = _axis(values, tensor)
            shape = [1] * len(tensor.shape)
            shape[tensor.axis] = tensor.scales.size
            return Constant(
                op.place, entry, axis, tuple(shape),
                scale=tensor.scales.reshape(() if axis is None else -1),
                zero=int(tensor.zero_points[0]),
                low=-127 if op.name in SYMMETRIC else -128,
            )  # fmt: skip
        return None


def _initializers(proto: Any) -> dict[str, Array]:
    return {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}


def _pair(group: str, given: str, made: str) -> list[Any]:
    """QuantizeLinear and DequantizeLinear by the scale of a group."""
    around = [f"{group}/scale", f"{group}/zero"]
    return [
        _node("QuantizeLinear", [given, *around], f"{made}/int8"),
        _node("DequantizeLinear", [f"{made}/int8", *around], made),
    ]


def _node(kind: str, inputs: list[str], made: str, **given: Any) -> Any:
    return helper.make_node(kind, inputs, [made], f"{made}/{kind}", **given)


def _of_integers(graph: Any, node: Any, group: str) -> list[Any]:
    """Makes an average pool one of integers; gives what comes after it.

    The graph gets what comes before.
    """
    given, made = node.input[0], node.output[0]
    _add(graph, np.array(1, np.float32), f"{made}/one")
    _add(graph, np.array(0, np.int8), f"{made}/none")
    _add(graph, np.array(BEYOND, np.float32), f"{made}/beyond")
    as_it_is = [f"{made}/one", f"{made}/none"]
    integers = _node(
        "DequantizeLinear", [f"{given}/int8", *as_it_is], f"{made}/integers"
    )
    graph.node.append(integers)
    node.input[0], node.output[0] = f"{made}/integers", f"{made}/average"
    return [
        _node("Mul", [f"{made}/average", f"{made}/beyond"], f"{made}/exact"),
        _node("QuantizeLinear", [f"{made}/exact", *as_it_is], f"{made}/int8"),
        _node(
            "DequantizeLinear", [f"{made}/int8", f"{group}/scale", f"{group}/zero"],
            made,
        ),
    ]  # fmt: skip


def _averages(node: Any) -> bool:
    """Whether a node gives averages of its input's numbers, and of no padding."""
    given = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    padded = given.get("count_include_pad", 0) and any(given.get("pads", ()))
    return node.op_type == "AveragePool" and not padded


def _add(graph: Any, values: Array, name: str) -> None:
    graph.initializer.append(numpy_helper.from_array(values, name))


def _axis(values: Array, tensor: Tensor) -> int | None:
    """Along which dimension the scales of a tensor of the file fit these values.

    Raises:
        BackendError: along none.
    """
    if tensor.scales.size == 1:
        return None
    for axis, size in enumerate(values.shape):
        if size == tensor.scales.size:
            others = tuple(one for one in range(values.ndim) if one != axis)
            steps = np.abs(values).max(others) / 127
            if np.allclose(steps, tensor.scales, rtol=1e-4, atol=1e-9):
                return axis
    raise BackendError(f"{tensor.name}: its scales are along no dimension of the graph")


def _along(scale: Array, values: Array, axis: int | None) -> Array:
    shape = [-1 if one == axis else 1 for one in range(values.ndim)]
    along: Array = scale if axis is None else scale.reshape(shape)
    return along


def _sorted(values: Array) -> Array:
    return np.sort(values, axis=None)


def _are_alike(one: Array, other: Array) -> bool:
    """Whether two arrays of one size have the same numbers, in whatever order."""
    size = float(np.abs(other).max(initial=0.0))
    return np.allclose(_sorted(one), _sorted(other), rtol=0, atol=1e-6 * size)
