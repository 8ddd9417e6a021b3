"""Float16: inputs and outputs stay float32, and what is kept stays whole."""

import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeml.errors import BackendError
from edgeml.graphs.half import half

WEIGHT = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32)


def chain() -> onnx.ModelProto:
    """y = ((x W) W) W: one constant for three products."""
    names = ["x", "a", "b", "y"]
    nodes = [
        helper.make_node("MatMul", [before, "w"], [after], f"to_{after}")
        for before, after in itertools.pairwise(names)
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "chain",
        [value("x", TensorProto.FLOAT, ["batch", 4])],
        [value("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8)


@pytest.mark.parametrize(
    "keep",
    [(), ("to_a",), ("to_b",), ("to_y",), ("to_b", "to_y"), ("to_a", "to_b", "to_y")],
    ids=str,
)
def test_any_node_may_be_kept(keep):
    made = half(chain(), keep)
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    assert session.get_inputs()[0].type == session.get_outputs()[0].type
    (found,) = session.run(None, {"x": X})
    assert found.dtype == np.float32
    exact = X @ WEIGHT @ WEIGHT @ WEIGHT
    slack = 1e-6 if len(keep) == 3 else 5e-3
    assert np.abs(found - exact).max() <= slack * np.abs(exact).max()
    sizes = {one.data_type for one in made.graph.initializer}
    floats = {TensorProto.FLOAT} if keep else set()
    halves = {TensorProto.FLOAT16} if len(keep) < 3 else set()
    assert sizes == floats | halves


def test_an_unknown_name_is_an_error():
    with pytest.raises(BackendError, match="absent"):
        half(chain(), ("absent",))
