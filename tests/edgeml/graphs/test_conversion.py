import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("device_agent.runtimes.openvino")

from device_agent.contract.tensors import TensorSpec
from edgeml.errors import BackendError
from edgeml.graphs.conversion import converted, layers_of, read, written
from edgeml.model import Model


def stateful(known=(-1, 4)):
    """x [batch, 4] and state [2, batch, 4] → x · w + state[0], a nameless Add."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["xw"], "product"),
            helper.make_node("Gather", ["state", "zero"], ["last"], "pick", axis=0),
            helper.make_node("Add", ["xw", "last"], ["y:0"]),
        ],
        "g",
        [
            value("x", TensorProto.FLOAT, ["batch", 4]),
            value("state", TensorProto.FLOAT, [2, "batch", 4]),
        ],
        [value("y:0", TensorProto.FLOAT, ["batch", 4])],
        [
            numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"),
            numpy_helper.from_array(np.array(0, np.int64), "zero"),
        ],
    )
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    inputs = (
        TensorSpec(name="x", datatype="FP32", shape=known),
        TensorSpec(name="state", datatype="FP32", shape=(2, -1, 4)),
    )
    outputs = (TensorSpec(name="y:0", datatype="FP32", shape=(-1, 4)),)
    return Model("graph", proto, inputs, outputs)


def shapes(graph):
    return [str(port.get_partial_shape()) for port in graph.inputs]


def test_the_batch_becomes_one_wherever_its_name_stands():
    assert shapes(converted(stateful(), ())) == ["[1,4]", "[2,1,4]"]


def test_the_batch_stays_variable_when_a_feed_is_larger():
    feeds = [{"x": np.zeros((3, 4), np.float32)}]
    assert shapes(converted(stateful(), feeds)) == ["[?,4]", "[2,?,4]"]


def test_shapes_that_the_model_pins_are_kept():
    assert shapes(converted(stateful(known=(5, 4)), ()))[0] == "[5,4]"


def test_every_name_of_a_node_leads_to_its_layer():
    model = stateful()
    layers = layers_of(model, converted(model, ()))
    assert layers.names["product"] == layers.names["xw"] == "product"
    assert layers.names["y:0"] == "y:0"
    assert {"product", "pick", "y:0"} <= set(layers.operations.values())


def test_what_is_written_is_read_with_the_same_names():
    graph = converted(stateful(), ())
    files = written(graph, half=False)
    again = read(files, "model.xml")
    assert written(again, half=False) == files
    assert [port.get_any_name() for port in again.outputs] == ["y:0"]


def test_names_do_not_depend_on_what_was_converted_before():
    first = written(converted(stateful(), ()), half=False)
    converted(stateful(known=(5, 4)), ())
    assert written(converted(stateful(), ()), half=False) == first


def test_files_that_are_no_model_are_an_error():
    with pytest.raises(BackendError, match="OpenVINO cannot read"):
        read({"model.xml": b"<net></net>", "model.bin": b""}, "model.xml")
