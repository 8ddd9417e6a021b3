"""Graphs are made ready without a change of what they compute."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeml.errors import BackendError
from edgeml.graphs import preparation


def tensor(name: str, *shape: int) -> onnx.TensorProto:
    values = np.linspace(0.1, 1, int(np.prod(shape)), dtype=np.float32)
    return numpy_helper.from_array(values.reshape(shape), name)


def network(*, opset: int = 17, named: bool = True) -> onnx.ModelProto:
    """Convolution, batch normalization, Relu, and a Gemm with a [1, N] bias."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv"),
        helper.make_node("BatchNormalization", ["c", "b", "b", "b", "b"], ["n"], "bn"),
        helper.make_node("Relu", ["n"], ["r"], "relu"),
        helper.make_node("Flatten", ["r"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "g", "h"], ["y"], "gemm"),
    ]
    if not named:
        for node in nodes:
            node.name = ""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [tensor("w", 2, 1, 3, 3), tensor("b", 2), tensor("g", 8, 3), tensor("h", 1, 3)],
    )
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=4)


def run(model: onnx.ModelProto) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(preparation.to_bytes(model))
    x = np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 1, 4, 4)
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("opset", [9, 13, 17])
def test_prepared_graphs_compute_the_same(opset: int):
    model = network(opset=opset)
    prepared = preparation.prepare(model)
    assert preparation.opset_of(prepared) >= preparation.QDQ_OPSET
    assert "BatchNormalization" not in preparation.op_counts(prepared)
    np.testing.assert_allclose(run(prepared), run(model), rtol=1e-5)


def test_the_model_that_came_in_is_not_changed():
    model = network(named=False)
    before = model.SerializeToString()
    preparation.prepare(model)
    preparation.to_bytes(model)
    assert model.SerializeToString() == before


def test_bytes_depend_on_content_alone():
    plain, remarked = network(), network()
    remarked.doc_string = "made on a Tuesday"
    remarked.producer_name = "exporter"
    remarked.graph.node[0].doc_string = "/home/someone/net.py:12"
    remarked.graph.value_info.append(
        helper.make_tensor_value_info("c", TensorProto.FLOAT, [1, 2, 9, 9])
    )
    assert preparation.to_bytes(plain) == preparation.to_bytes(remarked)
    assert preparation.to_bytes(plain) == preparation.to_bytes(
        preparation.from_bytes(preparation.to_bytes(plain))
    )


def test_nodes_get_names_and_initializers_are_no_inputs():
    model = network(named=False)
    listed = helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 1, 3, 3])
    model.graph.input.append(listed)
    model.graph.initializer.append(tensor("unused", 5))
    normal = preparation.normalized(model)
    names = [node.name for node in normal.graph.node]
    assert len(set(names)) == len(names) == 5 and all(names)
    assert [value.name for value in normal.graph.input] == ["x"]
    assert "unused" not in {item.name for item in normal.graph.initializer}


def test_biases_suit_the_quantizer():
    """Flat, and shared with nobody: its copies would get names that may be taken."""
    model = network()
    twin = helper.make_node("Conv", ["x", "w", "b"], ["b2"], "twin")
    model.graph.node.insert(0, twin)
    model.graph.output.append(
        helper.make_tensor_value_info("b2", TensorProto.FLOAT, ["n", 2, 2, 2])
    )
    prepared = preparation.prepare(model)
    shapes = {item.name: list(item.dims) for item in prepared.graph.initializer}
    biases = [n.input[2] for n in prepared.graph.node if n.op_type in ("Conv", "Gemm")]
    assert len(set(biases)) == 3
    assert all(len(shapes[bias]) == 1 for bias in biases)


def test_kept_nodes_follow_what_they_were_fused_into():
    model = network()
    prepared = preparation.prepare(model)
    assert preparation.kept_nodes(model, prepared, ["conv", "relu"]) == ("conv", "relu")
    assert preparation.kept_nodes(model, prepared, ["bn"]) == ("conv",)
    with pytest.raises(BackendError, match="'nobody'"):
        preparation.kept_nodes(model, prepared, ["nobody"])


def test_costs_are_counted():
    model = network()
    assert preparation.macs(model) == {"conv": 8 * 9, "gemm": 3 * 8}
    assert preparation.weight_bytes(model)["Gemm"] == (8 * 3 + 3) * 4


def test_an_operator_that_onnx_cannot_raise_is_named():
    model = network(opset=9)
    model.graph.node.append(helper.make_node("Crop", ["r"], ["u"], "crop"))
    with pytest.raises(BackendError, match=r"opset 9.*Crop"):
        preparation.at_opset(model, preparation.QDQ_OPSET)
