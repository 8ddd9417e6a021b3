import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeml.errors import BackendError
from edgeml.quantizers.nncf import load_nncf, quantize_onnx, quantize_openvino


def convolutions(opset=17, first="first"):
    """x → Conv → Relu → Conv(unnamed) → y, with a weight that nobody reads."""
    draw = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(draw.normal(size=shape).astype(np.float32), name)
        for name, shape in {
            "w1": (4, 1, 3, 3),
            "w2": (2, 4, 3, 3),
            "spare": (3,),
        }.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], first),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 4, 4])],
        weights,
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.fixture(scope="module")
def samples():
    draw = np.random.default_rng(1)
    return [{"x": draw.normal(size=(1, 1, 8, 8)).astype(np.float32)} for _ in range(6)]


def quantized_convolutions(model):
    """Names of the convolutions whose activations come from a DequantizeLinear."""
    made = {name: node for node in model.graph.node for name in node.output}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv"
        and node.input[0] in made
        and made[node.input[0]].op_type == "DequantizeLinear"
    ]


def test_both_convolutions_become_int8_and_the_answers_stay_near(samples):
    model = convolutions()
    quantized = quantize_onnx(model, samples)
    onnx.checker.check_model(quantized, full_check=True)
    assert quantized_convolutions(quantized) == ["first", "y"]
    exact, rounded = (
        ort.InferenceSession(one.SerializeToString()).run(None, samples[0])[0]
        for one in (model, quantized)
    )
    assert np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max()


def test_the_model_that_came_in_is_not_changed(samples):
    model = convolutions()
    before = model.SerializeToString(deterministic=True)
    quantize_onnx(model, samples, keep=["first"])
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("keep", ["first", "a"])
def test_a_node_is_kept_by_its_name_or_by_its_output(samples, keep):
    quantized = quantize_onnx(convolutions(), samples, keep=[keep])
    assert quantized_convolutions(quantized) == ["y"]


def test_a_nameless_node_is_kept_by_its_output(samples):
    quantized = quantize_onnx(convolutions(), samples, keep=["y"])
    assert quantized_convolutions(quantized) == ["first"]


def test_an_unknown_node_to_keep_is_an_error(samples):
    with pytest.raises(BackendError, match="no node named nowhere"):
        quantize_onnx(convolutions(), samples, keep=["nowhere"])


def test_no_samples_is_an_error():
    with pytest.raises(BackendError, match="needs calibration samples"):
        quantize_onnx(convolutions(), [])


def test_an_old_opset_is_raised(samples):
    quantized = quantize_onnx(convolutions(opset=8), samples)
    assert quantized.opset_import[0].version == 13
    assert quantized_convolutions(quantized) == ["first", "y"]


def weights(model):
    return {
        item.name: numpy_helper.to_array(item)
        for item in model.graph.initializer
        if item.data_type == TensorProto.INT8 and item.dims and len(item.dims) == 4
    }


def test_overflow_safe_halves_the_range_of_every_weight(samples):
    wide = weights(quantize_onnx(convolutions(), samples, overflow_safe=False))
    safe = weights(quantize_onnx(convolutions(), samples, overflow_safe=True))
    assert all(np.abs(value.astype(int)).max() > 100 for value in wide.values())
    assert all(np.abs(value.astype(int)).max() <= 64 for value in safe.values())


@pytest.mark.parametrize(
    "options",
    [
        {"fast_bias_correction": False},
        {"fast_bias_correction": None},
        {"preset": "mixed"},
        {"method": "minmax"},
        {"method": "percentile", "percentile": 90.0},
        {"per_channel": False},
        {"model_type": "transformer", "smooth_quant": False},
    ],
    ids=str,
)
def test_every_option_reaches_the_tool(samples, options):
    # without biases there is nothing to correct
    plain = quantize_onnx(with_bias(convolutions()), samples)
    other = quantize_onnx(with_bias(convolutions()), samples, **options)
    assert plain.SerializeToString() != other.SerializeToString()


def with_bias(model):
    bias = np.linspace(-1, 1, 4, dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(bias, "bias"))
    model.graph.node[0].input.append("bias")
    return model


def test_a_percentile_out_of_range_is_an_error(samples):
    with pytest.raises(BackendError, match="percentile 20"):
        quantize_onnx(convolutions(), samples, method="percentile", percentile=20.0)


def test_an_error_of_nncf_leaves_as_ours_with_its_reason(samples):
    wrong = [{"other": samples[0]["x"]}]
    with pytest.raises(BackendError, match=r"NNCF could not quantize: .+") as caught:
        quantize_onnx(convolutions(), wrong)
    assert caught.value.__cause__ is not None
    assert "\n" not in str(caught.value)


def test_openvino_models_are_quantized_and_not_changed(samples):
    import openvino as ov

    model = ov.Core().read_model(convolutions().SerializeToString())
    operations = len(model.get_ops())
    quantized = quantize_openvino(model, samples)
    assert len(model.get_ops()) == operations
    assert any(op.get_type_name() == "FakeQuantize" for op in quantized.get_ops())
    with pytest.raises(BackendError, match="no node named nowhere"):
        quantize_openvino(model, samples, keep=["nowhere"])


def test_nothing_is_printed_and_the_log_level_of_others_stays(samples, capfd):
    quantize_onnx(convolutions(), samples)
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == 0
    assert load_nncf() is sys.modules["nncf"]


@pytest.mark.long
def test_another_process_gives_the_same_bytes_and_leaves_the_home_alone(
    samples, tmp_path
):
    """Left alone, NNCF and OpenVINO send telemetry and write its id."""
    script = """
import sys, onnx, numpy as np
from edgeml.quantizers.nncf import quantize_onnx
draw = np.random.default_rng(1)
samples = [{"x": draw.normal(size=(1, 1, 8, 8)).astype(np.float32)} for _ in range(6)]
made = quantize_onnx(onnx.load(sys.argv[1]), samples)
open(sys.argv[2], "wb").write(made.SerializeToString(deterministic=True))
"""
    onnx.save(convolutions(), str(tmp_path / "in.onnx"))
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "in.onnx", tmp_path / "out.onnx"],
        env={**os.environ, "HOME": str(home), "PYTHONHASHSEED": "7"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == (b"", b"")
    assert list(home.iterdir()) == []
    here = quantize_onnx(convolutions(), samples).SerializeToString(deterministic=True)
    assert (tmp_path / "out.onnx").read_bytes() == here
