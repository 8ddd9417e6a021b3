"""Weights in blocks of 4 bits: what they say is computed, and nothing else changes."""

import copy
import logging

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeml.backends.onnxruntime import OnnxRuntimeBackend
from edgeml.candidate import QuantizeOptions
from edgeml.errors import BackendError
from edgeml.graphs.protos import real_inputs, spec_of
from edgeml.model import Model
from edgeml.quantizers import nbits
from targets.profile import load_target

RANDOM = np.random.default_rng(0)
WEIGHTS = {
    "w": RANDOM.standard_normal((100, 48)).astype(np.float32),
    "v": RANDOM.standard_normal((10, 48)).astype(np.float32),
    "b": RANDOM.standard_normal(10).astype(np.float32),
}
X = {"x": RANDOM.standard_normal((3, 100)).astype(np.float32)}


def graph(**attributes: float) -> onnx.ModelProto:
    """y = (x W) Vᵀ + b."""
    settings = {"transB": 1, **attributes}
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], "product"),
            helper.make_node("Gemm", ["h", "v", "b"], ["y"], "head", **settings),
        ],
        "net",
        [value("x", TensorProto.FLOAT, ["batch", 100])],
        [value("y", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(array, name) for name, array in WEIGHTS.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(made, opset_imports=opset, ir_version=8)


def run(proto: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, X)[0]


def unpacked(matrix: np.ndarray, block: int, symmetric: bool) -> np.ndarray:
    """What MatMulNBits reads from the packed weights, by its definition."""
    packed, scales, zeros = nbits.pack(matrix, block, symmetric)
    columns, blocks, _ = packed.shape
    nibbles = np.stack([packed & 15, packed >> 4], -1).reshape(columns, blocks, block)
    halves = np.stack([zeros & 15, zeros >> 4], -1).reshape(columns, -1)[:, :blocks]
    middle = np.full((columns, blocks), 8) if symmetric else halves
    values = (nibbles.astype(float) - middle[:, :, None]) * scales[:, :, None]
    return values.reshape(columns, -1)[:, : len(matrix)].T


@pytest.mark.parametrize("block", [16, 32, 128])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_graph_computes_what_the_blocks_say(block: int, symmetric: bool):
    made = nbits.quantize_weights(graph(), block=block, symmetric=symmetric)
    first = unpacked(WEIGHTS["w"], block, symmetric)
    second = unpacked(np.ascontiguousarray(WEIGHTS["v"].T), block, symmetric)
    wanted = X["x"] @ first @ second + WEIGHTS["b"]
    np.testing.assert_allclose(run(made), wanted, rtol=1e-4, atol=1e-3)


@given(
    rows=st.integers(1, 150), columns=st.integers(1, 20),
    block=st.sampled_from(nbits.BLOCKS), symmetric=st.booleans(),
    scale=st.floats(1e-3, 1e3), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_no_weight_is_off_by_more_than_a_step(
    rows: int, columns: int, block: int, symmetric: bool, scale: float, seed: int
):
    drawn = np.random.default_rng(seed).standard_normal((rows, columns)) * scale
    matrix = drawn.astype(np.float32)
    step = np.abs(nbits.pack(matrix, block, symmetric)[1])
    allowed = np.repeat(step, block, 1)[:, :rows].T
    off = np.abs(unpacked(matrix, block, symmetric) - matrix)
    assert (off <= allowed * 1.001 + 1e-7 * scale).all()


def test_in_8_bits_it_is_about_the_same_and_faster_kinds_are_asked_for():
    exact = run(nbits.quantize_weights(graph(), block=32))
    rough = nbits.quantize_weights(graph(), block=32, level=4)
    found = run(rough)
    assert 0 < np.abs(found - exact).max() < 0.05 * np.abs(exact).max()
    levels = {
        one.i for node in rough.graph.node for one in node.attribute
        if one.name == "accuracy_level"
    }  # fmt: skip
    assert levels == {4}


def test_an_eighth_of_the_bytes_is_left():
    floats = sum(4 * array.size for name, array in WEIGHTS.items() if name != "b")
    made = nbits.quantize_weights(graph(), block=128, symmetric=True)
    packed = sum(len(one.raw_data) for one in made.graph.initializer)
    assert packed < floats / 4  # 100 and 48 rows are padded to 128
    assert not {"w", "v"} & {one.name for one in made.graph.initializer}


def test_the_packing_is_that_of_onnx_runtimes_own_tool():
    pytest.importorskip("onnx_ir", reason="the tool needs it, the module does not")
    before = logging.root.handlers[:]
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.root.handlers[:] = before  # it sets up the root logger
    for block, symmetric in ((128, False), (32, True)):
        tool = MatMulNBitsQuantizer(
            copy.deepcopy(graph()), block_size=block, is_symmetric=symmetric
        )
        tool.process()
        theirs = {
            one.name: numpy_helper.to_array(one)
            for one in tool.model.model.graph.initializer
        }
        ours = nbits.pack(WEIGHTS["w"], block, symmetric)
        np.testing.assert_array_equal(theirs["w_Q4"], ours[0])
        np.testing.assert_array_equal(theirs["w_scales"], ours[1])
        if not symmetric:
            np.testing.assert_array_equal(theirs["w_zero_points"], ours[2])


def test_a_matrix_that_serves_two_products_is_packed_once():
    proto = graph()
    proto.graph.node.append(helper.make_node("MatMul", ["x", "w"], ["again"], "twice"))
    proto.graph.output.append(
        helper.make_tensor_value_info("again", TensorProto.FLOAT, ["batch", 48])
    )
    made = nbits.quantize_weights(proto)
    kinds = [node.op_type for node in made.graph.node]
    assert kinds.count("MatMulNBits") == 3
    names = [one.name for one in made.graph.initializer]
    assert len(names) == len(set(names))
    assert names.count("w_Q4") == 1


@pytest.mark.parametrize("attributes", [{"alpha": 0.5}, {"beta": 2.0}, {"transA": 1}])
def test_another_gemm_than_product_and_sum_stays_float(attributes: dict[str, float]):
    made = nbits.quantize_weights(graph(**attributes))
    assert [node.op_type for node in made.graph.node] == ["MatMulNBits", "Gemm"]


def test_kept_nodes_stay_float_and_keeping_all_is_an_error():
    made = nbits.quantize_weights(graph(), keep=["product"])
    assert [node.op_type for node in made.graph.node] == [
        "MatMul",
        "MatMulNBits",
        "Add",
    ]
    with pytest.raises(BackendError, match="nothing was quantized"):
        nbits.quantize_weights(graph(), keep=["product", "head"])


@pytest.mark.parametrize("options", [{"block": 48}, {"level": 2}])
def test_what_the_operator_does_not_know_is_refused(options: dict[str, int]):
    with pytest.raises(BackendError, match="blocks of"):
        nbits.quantize_weights(graph(), **options)


def test_the_graph_that_came_in_is_unchanged_and_bytes_repeat():
    proto = graph()
    before = proto.SerializeToString()
    first, second = (nbits.quantize_weights(proto, block=32) for _ in range(2))
    assert proto.SerializeToString() == before
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )


def as_model(proto: onnx.ModelProto) -> Model:
    return Model(
        "graph", proto,
        tuple(map(spec_of, real_inputs(proto.graph))),
        tuple(map(spec_of, proto.graph.output)),
    )  # fmt: skip


def test_the_backend_offers_it_where_matrices_hold_the_weights():
    backend, target = OnnxRuntimeBackend(), load_target("cpu-x86_64")
    model = as_model(graph())
    specs = {
        one.name: one
        for one in backend.specs(model, target, QuantizeOptions())
        if one.precision == "int4"
    }
    assert "int4 nbits default" in specs
    assert len(specs) == 8
    levels = {one.parameters.get("level", 0) for one in specs.values()}
    assert levels == {0, 4}
    for spec in specs.values():
        artifact = backend.lower(model, target, spec, [])
        assert artifact.size_bytes < 0.4 * len(graph().SerializeToString())
        assert artifact.options == {}, "nothing can saturate"


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"precisions": ("int4",)}, 8),
        ({"precisions": ("int4",), "quantizers": ("nbits",)}, 8),
        ({"precisions": ("int8",)}, 0),
        ({"quantizers": ("ort",)}, 0),
    ],
)
def test_the_recipe_decides(options: dict[str, tuple[str, ...]], names: int):
    backend, target = OnnxRuntimeBackend(), load_target("cpu-x86_64")
    specs = backend.specs(as_model(graph()), target, QuantizeOptions(**options))
    assert sum(one.precision == "int4" for one in specs) == names
    assert not any(one.refused for one in specs)


def test_asked_for_of_another_tool_it_is_a_reason():
    options = QuantizeOptions(precisions=("int4",), quantizers=("nncf",))
    specs = OnnxRuntimeBackend().specs(
        as_model(graph()), load_target("cpu-x86_64"), options
    )
    assert any("made with nbits" in one.refused for one in specs)
