"""A quantized ONNX graph as a torch module that trains, and what it learned back.

The rules it keeps:

1. ``QuantizeLinear`` and ``DequantizeLinear`` compute what ONNX says (round half to
   even, then the zero point, then saturate), in float; the gradient goes straight
   through the rounding and is zero where values saturate.
2. Weights are trained in float. Their scales follow them, per channel where they were
   per channel: largest magnitude divided by the largest integer that the quantizer had
   used. Scales that cannot follow (a zero point that is not zero, a scale of several
   tensors) stay.
3. Scales of activations are learned as the logarithm of their ratio to the calibrated
   ones, zero points stay. What comes out of softmax, sigmoid and tanh has a range that
   is known, and LiteRT insists on it: these scales stay. So does a scale of exactly 1:
   it is that of integers.
4. The bias of a quantized layer is a multiple of input scale times weight scale, also
   where the graph has it in float: the runtime makes 32 bits of it.
5. What was learned is written into the initializers of the same graph; nodes, names and
   types stay, so the scheme is the backend's by construction.

References:
    Jacob et al.: Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, 2018.
    Esser et al.: Learned Step Size Quantization, 2020.
    Jain et al.: Trained Quantization Thresholds, 2020 (the logarithm).
"""

import copy
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from device_agent.contract.tensors import TensorSpec

from ..errors import BackendError, ModelError
from ..graphs.preparation import QDQ_OPSET, at_opset
from ..graphs.protos import describe
from ..graphs.torched import Importer

BIAS_LIMIT = 2.0**30
"""Integers of a bias stay below it, or a weight near zero would overflow 32 bits."""
RANGES: dict[str, tuple[float, float]] = {
    "int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767),
    "uint16": (0, 65535), "int32": (-2147483520, 2147483520),
}  # fmt: skip
"""Those of int32 are the largest that float32 has."""
BIASED = frozenset({"Conv", "ConvTranspose", "Gemm"})
BOUNDED = frozenset({"Softmax", "Sigmoid", "Tanh"})
_READERS = frozenset({"QuantizeLinear", "DequantizeLinear"})


def rounded(x: Any) -> Any:
    """Rounded, half to even; the gradient of the identity."""
    return x + (x.round() - x).detach()


def quantize(
    x: Any, scale: Any, zero: Any, axis: int | None, low: float, high: float
) -> Any:
    """What ONNX's QuantizeLinear gives, as floats."""
    scale, zero = along(scale, x, axis), along(zero, x, axis)
    return (rounded(x / scale) + zero).clamp(low, high)


def dequantize(x: Any, scale: Any, zero: Any, axis: int | None) -> Any:
    """What ONNX's DequantizeLinear gives."""
    return (x - along(zero, x, axis)) * along(scale, x, axis)


def along(values: Any, x: Any, axis: int | None) -> Any:
    """One value per slice of ``x`` along an axis, in a shape that fits; or one for all.

    A scalar has no axis.
    """
    if axis is None:
        return values.reshape(())
    return values.reshape(
        [-1 if one == axis % x.dim() else 1 for one in range(x.dim())]
    )


def grown(scale: Any, growth: Any) -> Any:
    """A calibrated scale after what was learned; exactly itself at first."""
    return scale * growth.exp()


def fitted(
    weight: Any, before: Any, limit: Any, axis: int | None, bias: Any, step: Any
) -> Any:
    """The scale of a weight: its largest magnitude becomes ``limit``.

    Args:
        weight: the weight, in float.
        before: the scales it had; they stay where it is zero.
        limit: the largest integers.
        axis: of the channels; None: one scale.
        bias: what is added, or None; it must fit into 32 bits.
        step: the scale of the input, when there is a bias.
    """
    size = weight.detach().abs()
    if axis is not None:
        others = [one for one in range(size.dim()) if one != axis % size.dim()]
        size = size.amax(others)
    else:
        size = size.amax().reshape(before.shape)
    scale = (size / limit).where(size > 0, before)
    if bias is None:
        return scale
    least = bias.detach().abs() / (step.detach() * BIAS_LIMIT)
    if least.shape != scale.shape:
        least = least.amax().expand(scale.shape)
    return scale.maximum(least)


def product(step: Any, scale: Any) -> Any:
    """The scales of a bias; nothing is learned through them."""
    return (step.detach() * scale.detach()).reshape(-1)


@dataclass
class _Plan:
    """What is quantized in a graph, by the names of initializers.

    ``data``: a weight or bias → the node that (de)quantizes it. ``scales``: a scale →
    the weights and biases that it is of, ``""`` for computed tensors. ``biases``: a
    bias → (the weight beside it, the scale of the input). ``bounded``: scales of what
    has a range that is known.
    """

    data: dict[str, Any] = field(default_factory=dict)
    scales: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    biases: dict[str, tuple[str, str]] = field(default_factory=dict)
    bounded: set[str] = field(default_factory=set)

    def bias_of(self, weight: str) -> str | None:
        """The bias beside a weight, if there is one and no other."""
        found = [bias for bias, (other, _) in self.biases.items() if other == weight]
        return found[0] if len(found) == 1 else None


def _plan(graph: Any) -> _Plan:
    plan, initial = _Plan(), {one.name: one for one in graph.initializer}
    readers = [node for node in graph.node if node.op_type in _READERS]
    uses = Counter(name for node in graph.node for name in node.input)
    for node in readers:
        if any(one.name == "block_size" and one.i for one in node.attribute):
            raise ModelError(f"{describe(node)} quantizes in blocks; expected channels")
        name = node.input[0] if node.input[0] in initial else ""
        plan.scales[node.input[1]].add(name)
        if name:
            plan.data.setdefault(name, node)
    bounded = {
        name for node in graph.node if node.op_type in BOUNDED for name in node.output
    }
    plan.bounded = {node.input[1] for node in readers if node.input[0] in bounded}
    makers = {node.output[0]: node for node in readers}
    for layer in graph.node:
        if layer.op_type not in BIASED or len(layer.input) < 3:
            continue
        x, weight, bias = (makers.get(name) for name in layer.input[:3])
        if x is None or weight is None or weight.input[0] not in plan.data:
            continue
        name = layer.input[2] if bias is None else bias.input[0]
        if name in plan.data or (name in initial and uses[name] == 1):
            plan.biases[name] = (weight.input[0], x.input[1])
    return plan


class Simulation:
    """A quantized graph (QDQ) with float weights, to be trained.

    ``module`` takes the graph's inputs in their order and gives its outputs by name.

    Raises:
        ModelError: an operator has no counterpart in torch, or a kind of quantization
            is not known here.
    """

    def __init__(self, proto: Any, inputs: Sequence[TensorSpec]) -> None:
        try:
            self._proto = at_opset(proto, QDQ_OPSET)
        except BackendError as error:
            raise ModelError(f"the graph cannot be trained: {error}") from error
        _constants_as_initializers(self._proto.graph)
        self._plan = _plan(self._proto.graph)
        self._initial = {
            one.name: numpy_helper.to_array(one)
            for one in self._proto.graph.initializer
        }
        self._scales: dict[str, Any] = {}
        self._written: dict[str, Any] = {}
        operators = {
            "QuantizeLinear": self._quantize,
            "DequantizeLinear": self._dequantize,
            **dict.fromkeys(BIASED, self._biased),
        }
        importer = Importer(self._proto, inputs, operators, layers=False)
        self._building = importer.building
        self.module = importer.module()
        self._freeze_statistics()
        for name, node in self._building.constants.items():
            if name in self._initial and self._initial[name].dtype == np.float32:
                self._written.setdefault(name, node)

    def written(self) -> Any:
        """The graph with what ``module`` has learned."""
        made = type(self._proto)()
        made.CopyFrom(self._proto)
        learned = self._learned()
        for tensor in made.graph.initializer:
            if tensor.name in learned:
                old = self._initial[tensor.name]
                new = learned[tensor.name].reshape(old.shape).astype(old.dtype)
                tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
        return made

    def _learned(self) -> dict[str, Any]:
        """Initializers → their values now; the graph without its inputs gives them."""
        import torch
        from torch import fx

        graph, copies = fx.Graph(), dict[Any, Any]()
        graph.graph_copy(self.module.graph, copies)
        alive = {name: node for name, node in self._written.items() if node in copies}
        graph.output({name: copies[node] for name, node in alive.items()})
        made = fx.GraphModule(self.module, graph)
        made.graph.eliminate_dead_code()
        made.recompile()
        absent = [None for node in graph.nodes if node.op == "placeholder"]
        with torch.no_grad():
            found = made(*absent)
        return {name: value.detach().cpu().numpy() for name, value in found.items()}

    def _quantize(self, at: Any) -> Any:
        """QuantizeLinear: of an activation, or of a weight that the graph has in float.

        Integers are floats here: they pass what moves and selects values as they are.
        """
        name = at.node.input[0]
        x = self._float(name) if name in self._plan.data else at.arg(0)
        return at.call(quantize, x, *self._around(at.node), *self._range(at.node))

    def _dequantize(self, at: Any) -> Any:
        """DequantizeLinear: of an activation, a weight or a bias."""
        name, around = at.node.input[0], self._around(at.node)
        if name not in self._plan.data:
            return at.call(dequantize, at.arg(0), *around)
        made = at.call(quantize, self._float(name), *around, *self._range(at.node))
        self._written[name] = made.node
        return at.call(dequantize, made.node, *around)

    def _biased(self, at: Any) -> Any:
        """A layer whose bias the graph has in float, and the runtime in 32 bits."""
        from ..graphs.torched_ops import OPERATORS

        layer, name = OPERATORS[at.node.op_type], (*at.node.input, "", "")[2]
        if name not in self._plan.biases:
            return layer(at)
        zero = self._constant(np.zeros((), np.float32), "no_zero_point")
        around = (self._product(name), zero, 0)
        made = at.call(quantize, self._float(name), *around, *RANGES["int32"])
        rounded_bias = at.call(dequantize, made.node, *around)
        self._written[name] = rounded_bias.node
        inner = copy.copy(at)
        inner.values = [*at.values[:2], rounded_bias]
        return layer(inner)

    def _around(self, node: Any) -> tuple[Any, Any, int | None]:
        """Scale, zero point and axis of a node."""
        zero = self._zero(node).astype(np.float32)
        name = node.input[2] if len(node.input) > 2 else "no_zero_point"
        return (
            self._scale(node.input[1]),
            self._constant(zero, f"{name}_float"),
            self._axis(node),
        )

    def _zero(self, node: Any) -> Any:
        if len(node.input) > 2 and node.input[2]:
            return self._known(node, 2)
        return np.zeros((), _output_type(node))

    def _axis(self, node: Any) -> int | None:
        axes = [one.i for one in node.attribute if one.name == "axis"]
        return None if self._known(node, 1).size == 1 else int((axes or [1])[0])

    def _known(self, node: Any, place: int) -> Any:
        name = node.input[place]
        if name not in self._initial:
            raise ModelError(f"{describe(node)}: expected {name!r} to be a constant")
        return self._initial[name]

    def _range(self, node: Any) -> tuple[float, float]:
        """The smallest and the largest integer of a node."""
        name, kind = node.input[0], self._kind(node)
        if name in self._plan.data and self._follows(name):
            most = float(self._limits(name).max())
            return -most, most
        if kind not in RANGES:
            raise ModelError(f"{describe(node)} has {kind}; known: {', '.join(RANGES)}")
        return RANGES[kind]

    def _follows(self, name: str) -> bool:
        """Whether the scale of a weight is its own, symmetric, and follows it."""
        node = self._plan.data[name]
        return (
            self._plan.scales[node.input[1]] == {name}
            and self._kind(node) in ("int8", "int16")
            and not self._zero(node).any()
        )

    def _kind(self, node: Any) -> str:
        """The type of a node's integers."""
        name = node.input[0]
        if node.op_type == "DequantizeLinear" and name in self._plan.data:
            return str(self._initial[name].dtype)
        return str(self._zero(node).dtype)

    def _limits(self, name: str) -> Any:
        """The largest integer that the quantizer gave each scale of a weight.

        127, but 64 for weights of 7 bits, and what a quantizer that clips came to.
        """
        node, values = self._plan.data[name], self._initial[name].astype(np.float32)
        axis, scale = self._axis(node), self._known(node, 1)
        if self._initial[name].dtype.kind == "f":
            values = np.round(values / _along(scale, values, axis))
        others = None
        if axis is not None:
            rank = values.ndim
            others = tuple(one for one in range(rank) if one != axis % rank)
        size = np.abs(values).max(others)
        size = np.minimum(size, RANGES[self._kind(node)][1])
        most = size.max() or RANGES[self._kind(node)][1]
        return np.where(size, size, most).astype(np.float32).reshape(scale.shape)

    def _float(self, name: str) -> Any:
        """The node that reads a weight or bias in float: what is trained."""
        values = self._initial[name]
        if values.dtype.kind != "f":
            node = self._plan.data[name]
            axis = self._axis(node)
            zero = _along(self._zero(node).astype(np.float64), values, axis)
            scale = _along(self._known(node, 1).astype(np.float64), values, axis)
            values = ((values - zero) * scale).astype(np.float32)
            name = f"{name}_float"
        return self._constant(values, name, learned=True)

    def _constant(self, values: Any, name: str, learned: bool = False) -> Any:
        """The node that reads these values: a parameter, or a buffer."""
        import torch

        from ..graphs.torched_site import Constant

        tensor = torch.from_numpy(np.array(values))
        return self._building.attribute(Constant(tensor, name), learned)

    def _scale(self, name: str) -> Any:
        """The node that gives a scale as it is now."""
        if name not in self._scales:
            self._scales[name] = self._new_scale(name)
        return self._scales[name]

    def _new_scale(self, name: str) -> Any:
        building, plan, of = self._building, self._plan, self._plan.scales[name]
        if name not in self._initial:
            raise ModelError(f"the scale {name!r} is computed; expected a constant")
        values = self._initial[name].astype(np.float32)
        before = self._constant(values, name)
        data = next(iter(of))
        known = name in plan.bounded or (values == 1).all()
        if of == {""} and values.size == 1 and not known:
            growth = self._constant(np.zeros((), np.float32), f"{name}_growth", True)
            made = building.call(grown, before, growth)
        elif len(of) == 1 and data in plan.biases:
            made = self._product(data)
        elif len(of) == 1 and data and self._follows(data):
            bias, step = plan.bias_of(data), None
            if bias is not None:
                step = self._scale(plan.biases[bias][1])
            limits = self._constant(self._limits(data), f"{data}_limit")
            axis = self._axis(plan.data[data])
            beside = None if bias is None else self._float(bias)
            made = building.call(
                fitted, self._float(data), before, limits, axis, beside, step
            )
        else:
            return before
        self._written[name] = made
        return made

    def _product(self, bias: str) -> Any:
        """The node that gives the scale of a bias."""
        weight, step = self._plan.biases[bias]
        other = self._scale(self._plan.data[weight].input[1])
        return self._building.call(product, self._scale(step), other)

    def _freeze_statistics(self) -> None:
        """Means and variances of batch normalizations are not trained."""
        for node in self._proto.graph.node:
            if node.op_type == "BatchNormalization":
                for name in node.input[3:5]:
                    found = self._building.constants.get(name)
                    if found is not None:
                        self.module.get_parameter(found.target).requires_grad_(False)


def _along(values: Any, x: Any, axis: int | None) -> Any:
    if axis is None:
        return values.reshape(())
    return values.reshape([-1 if one == axis % x.ndim else 1 for one in range(x.ndim)])


def _output_type(node: Any) -> str:
    kinds = [one.i for one in node.attribute if one.name == "output_dtype"]
    return str(helper.tensor_dtype_to_np_dtype(kinds[0])) if any(kinds) else "uint8"


def _constants_as_initializers(graph: Any) -> None:
    """Constant nodes of tensors become initializers: what is learned goes there."""
    found = [
        (node, one)
        for node in graph.node
        if node.op_type == "Constant"
        for one in node.attribute
        if one.name == "value"
    ]
    for node, one in found:
        tensor = graph.initializer.add()
        tensor.CopyFrom(one.t)
        tensor.name = node.output[0]
        graph.node.remove(node)
