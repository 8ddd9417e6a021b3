"""Small ONNX graphs, written down node by node."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeml.graphs.protos import real_inputs, spec_of
from edgeml.model import Model


def graph(
    nodes: list[Any],
    shapes: dict[str, list[Any]],
    outputs: list[str],
    constants: dict[str, Any] | None = None,
    opset: int = 17,
    kinds: dict[str, int] | None = None,
    sizes: dict[str, list[Any]] | None = None,
) -> Model:
    """A checked model; ``sizes``: of outputs whose shape ONNX cannot tell."""
    kinds = kinds or {}
    made = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(n, kinds.get(n, TensorProto.FLOAT), s)
         for n, s in shapes.items()],
        [helper.make_value_info(n, helper.make_tensor_type_proto(
            kinds.get(n, TensorProto.FLOAT), (sizes or {}).get(n))) for n in outputs],
        [numpy_helper.from_array(np.asarray(v), n)
         for n, v in (constants or {}).items()],
    )  # fmt: skip
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)])
    proto.ir_version = 8
    proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    onnx.checker.check_model(proto)
    return of(proto)


def of(proto: Any) -> Model:
    return Model(
        "graph",
        proto,
        tuple(spec_of(value) for value in real_inputs(proto.graph)),
        tuple(spec_of(value, "output") for value in proto.graph.output),
    )


def node(kind: str, inputs: list[str], outputs: list[str], **given: Any) -> Any:
    return helper.make_node(kind, inputs, outputs, name=f"the {kind}", **given)


def random(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
