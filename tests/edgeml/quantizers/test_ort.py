"""Every option reaches ONNX Runtime's quantizers, and shows in what they make."""

import hashlib
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeml.errors import BackendError
from edgeml.graphs import preparation
from edgeml.quantizers import ort

INT8, UINT8 = TensorProto.INT8, TensorProto.UINT8


def network() -> onnx.ModelProto:
    random = np.random.default_rng(0)

    def constant(name: str, *shape: int) -> onnx.TensorProto:
        values = random.standard_normal(shape).astype(np.float32)
        return numpy_helper.from_array(values, name)

    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv"),
            helper.make_node("Relu", ["c"], ["r"], "relu"),
            helper.make_node("Flatten", ["r"], ["f"], "flatten"),
            helper.make_node("MatMul", ["f", "m"], ["y"], "product"),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
        [constant("w", 4, 2, 3, 3), constant("b", 4), constant("m", 64, 5)],
    )
    imports = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


SAMPLES = [
    {"x": np.random.default_rng(seed).standard_normal((1, 2, 6, 6)).astype("f4")}
    for seed in range(5)
]


@pytest.fixture(scope="module")
def prepared() -> onnx.ModelProto:
    return preparation.prepare(network())


@pytest.fixture(scope="module")
def ranges(prepared: onnx.ModelProto) -> bytes:
    return ort.calibrate(prepared, SAMPLES, "minmax")


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {
        item.name: numpy_helper.to_array(item)
        for item in model.graph.initializer
        if item.name.endswith("_quantized")
    }


def zero_points(model: onnx.ModelProto) -> set[int]:
    kinds = {item.name: item.data_type for item in model.graph.initializer}
    return {
        kinds[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear"
    }


@pytest.mark.parametrize("method", ort.METHODS)
def test_every_method_runs_on_single_samples(prepared: onnx.ModelProto, method: str):
    first = ort.calibrate(prepared, SAMPLES, method)
    assert first == ort.calibrate(prepared, SAMPLES, method)
    made = ort.quantize_static(prepared, first)
    onnx.checker.check_model(made)


def test_more_samples_than_a_chunk_count_as_one_set(prepared: onnx.ModelProto):
    many = SAMPLES * ort.CHUNK
    assert ort.calibrate(prepared, many, "minmax") == ort.calibrate(
        prepared, SAMPLES, "minmax"
    )


def test_the_percentile_reaches_the_tool(prepared: onnx.ModelProto):
    wide = ort.calibrate(prepared, SAMPLES, "percentile", 99.99)
    assert wide != ort.calibrate(prepared, SAMPLES, "percentile", 90.0)


@pytest.mark.parametrize(("word", "kind"), [("u8", UINT8), ("s8", INT8)])
def test_activation_types(prepared, ranges, word: str, kind: int):
    made = ort.quantize_static(prepared, ranges, activation=word)
    assert zero_points(made) == {kind}


def test_per_channel_and_reduce_range(prepared, ranges):
    scales = [
        {i.name: list(i.dims) for i in made.graph.initializer}["w_scale"]
        for made in (
            ort.quantize_static(prepared, ranges, per_channel=True),
            ort.quantize_static(prepared, ranges, per_channel=False),
        )
    ]
    assert scales[0] == [4] and scales[1] in ([], [1])
    full = weights(ort.quantize_static(prepared, ranges))["w_quantized"]
    seven = weights(ort.quantize_static(prepared, ranges, reduce_range=True))
    assert abs(full.astype(int)).max() == 127
    assert abs(seven["w_quantized"].astype(int)).max() <= 64


def test_kept_nodes_and_operators(prepared, ranges):
    assert set(weights(ort.quantize_static(prepared, ranges, keep=["conv"]))) == {
        "m_quantized"
    }
    only = ort.quantize_static(prepared, ranges, operators=["Conv"])
    assert "m_quantized" not in weights(only) and "w_quantized" in weights(only)


def test_the_default_is_the_tools_own(tmp_path):
    """Byte for byte what ``quantize_static`` gives that is told nothing."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = iter(SAMPLES)

        def get_next(self):
            return next(self.left, None)

    quantize_static(network(), tmp_path / "made.onnx", Reader())
    theirs = onnx.load(tmp_path / "made.onnx")
    ours = ort.quantize_default(network(), SAMPLES)
    assert preparation.to_bytes(ours) == preparation.to_bytes(theirs)


def test_dynamic_needs_no_samples(prepared):
    made = ort.quantize_dynamic(prepared)
    assert "MatMulInteger" in preparation.op_counts(made)
    assert "ConvInteger" not in preparation.op_counts(made)


def test_nothing_to_quantize_is_an_error(prepared, ranges):
    with pytest.raises(BackendError, match="nothing was quantized"):
        ort.quantize_static(prepared, ranges, operators=["LSTM"])
    with pytest.raises(BackendError, match="nothing was quantized"):
        ort.quantize_dynamic(prepared, keep=["product"])


def test_no_samples_and_unknown_methods_are_refused(prepared):
    with pytest.raises(BackendError, match="samples"):
        ort.calibrate(prepared, [], "minmax")
    with pytest.raises(BackendError, match="distribution"):
        ort.calibrate(prepared, SAMPLES, "distribution")


@pytest.mark.long
def test_other_processes_make_the_same_bytes(tmp_path):
    """Hash seeds and thread counts leave no trace."""
    path = tmp_path / "net.onnx"
    path.write_bytes(network().SerializeToString())
    code = (
        "import hashlib, numpy, onnx, sys\n"
        "from edgeml.graphs import preparation\n"
        "from edgeml.quantizers import ort\n"
        "x = numpy.linspace(-1, 1, 72, dtype='f4').reshape(1, 2, 6, 6)\n"
        "p = preparation.prepare(onnx.load(sys.argv[1]))\n"
        "q = ort.quantize_static(p, ort.calibrate(p, [{'x': x}], 'entropy'))\n"
        "print(hashlib.sha256(preparation.to_bytes(q)).hexdigest())\n"
    )
    there = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env={"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "2", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    x = np.linspace(-1, 1, 72, dtype="f4").reshape(1, 2, 6, 6)
    prepared = preparation.prepare(network())
    ranges = ort.calibrate(prepared, [{"x": x}], "entropy")
    here = preparation.to_bytes(ort.quantize_static(prepared, ranges))
    assert hashlib.sha256(here).hexdigest() == there
