"""What a graph must be for a GPU: fixed shapes, and int8 that TensorRT takes.

The rules it keeps:

1. Every dimension is a number: the batch becomes 1. A TensorRT engine is built for its
   shapes, and a graph that computes shapes leaves nodes to the CPU.
2. TensorRT's explicit quantization: QuantizeLinear and DequantizeLinear in int8 with
   zero point 0 on both sides, scales per tensor for activations and per output channel
   for weights, biases in float.

References:
    NVIDIA TensorRT documentation, "Explicit Quantization".
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .preparation import folded, normalized
from .protos import describe, nodes

_CHANNELS = {"Conv": 0, "ConvTranspose": 1}
"""Weighted operators → the dimension of output channels in their weights."""


def variable(proto: Any) -> list[str]:
    """Inputs with a variable dimension besides the batch, for a message."""
    return [
        f"{value.name} {_shown(value)}"
        for value in normalized(proto).graph.input
        if any(
            not dim.HasField("dim_value")
            for dim in value.type.tensor_type.shape.dim[1:]
        )
    ]


def pinned(proto: Any) -> Any:
    """The graph with batch 1, and what follows from its shapes computed.

    Raises:
        BackendError: the graph does not load with these shapes.
    """
    import onnx

    copy = normalized(proto)
    for value in copy.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = 1
    for value in copy.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")  # what it was called is known no more
    del copy.graph.value_info[:]
    made = folded(onnx.shape_inference.infer_shapes(copy, data_prop=True))
    return normalized(onnx.shape_inference.infer_shapes(made, data_prop=True))


def tensorrt_faults(proto: Any) -> list[str]:
    """Where a quantized graph breaks rule 2, in words; empty: nowhere."""
    from onnx import numpy_helper

    constants = {one.name: one for one in proto.graph.initializer}
    readers: dict[str, list[tuple[Any, int]]] = {}
    for node in proto.graph.node:
        for place, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, place))
    faults = []
    for node in nodes(proto):
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        zero = node.input[2] if len(node.input) > 2 else ""
        if not zero or zero not in constants:
            faults.append(f"{describe(node)} has no constant zero point, so it is u8")
            continue
        value = numpy_helper.to_array(constants[zero])
        if value.dtype != np.int8 or value.any():
            faults.append(
                f"{describe(node)} is {value.dtype}, zero point {value.flat[0]}"
            )
        if value.size > 1:
            faults += _channel_faults(node, constants, readers)
        faults += [
            f"{describe(reader)} reads a quantized bias"
            for reader, place in readers.get(node.output[0], [])
            if place == 2 and reader.op_type in ("Conv", "ConvTranspose", "Gemm")
        ]
    return faults


def _channel_faults(
    node: Any,
    constants: Mapping[str, Any],
    readers: Mapping[str, Sequence[tuple[Any, int]]],
) -> list[str]:
    """What is wrong with a pair that has a scale per channel."""
    if node.input[0] not in constants:
        return [f"{describe(node)} quantizes an activation per channel"]
    axis = next((one.i for one in node.attribute if one.name == "axis"), 1)
    rank = len(constants[node.input[0]].dims)
    return [
        f"{describe(node)} has scales along dimension {axis} of the weights of "
        f"{describe(reader)}"
        for reader, _ in readers.get(node.output[0], [])
        if axis % rank != _channel_axis(reader, rank)
    ]


def _channel_axis(node: Any, rank: int) -> int:
    if node.op_type == "Gemm":
        turned = any(one.name == "transB" and one.i for one in node.attribute)
        return 0 if turned else 1
    return _CHANNELS.get(node.op_type, rank - 1)


def _shown(value: Any) -> str:
    dims = value.type.tensor_type.shape.dim
    sizes = (str(d.dim_value) if d.HasField("dim_value") else "?" for d in dims)
    return f"[{', '.join(sizes)}]"
