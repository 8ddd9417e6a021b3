import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

# not openvino itself: left alone, its import writes an id into the user's home
ov = pytest.importorskip("device_agent.runtimes.openvino").ov

from openvino import opset13  # noqa: E402

from device_agent.contract.errors import ArtifactError, MachineError  # noqa: E402
from device_agent.contract.tensors import TensorSpec  # noqa: E402
from device_agent.runtimes import runtime  # noqa: E402


@pytest.fixture(scope="module")
def openvino():
    return runtime("openvino")


def doubled(shape=(-1, 3)):
    """y = 2 x for float32, and a copy of an int64 scalar."""
    x = opset13.parameter(shape, np.float32, name="x")
    rate = opset13.parameter([], np.int64, name="rate")
    y = opset13.multiply(x, np.float32(2))
    z = opset13.add(rate, np.int64(1))
    for node, name in ((x, "x"), (rate, "rate"), (y, "y"), (z, "z")):
        node.output(0).get_tensor().set_names({name})
    return ov.Model([y, z], [x, rate], "doubled")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    path = tmp_path_factory.mktemp("artifact") / "model.xml"
    ov.save_model(doubled(), str(path), compress_to_fp16=False)
    return path


@pytest.fixture
def feeds():
    return {
        "x": np.array([[1, 2, 3]], np.float32),
        "rate": np.array(16000, np.int64),
    }


def test_inputs_and_outputs_are_as_the_artifact_declares_them(openvino, artifact):
    session = openvino.load(artifact, {})
    assert session.inputs == (
        TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),
        TensorSpec(name="rate", datatype="INT64", shape=()),
    )
    assert [spec.name for spec in session.outputs] == ["y", "z"]


def test_it_predicts_and_gives_arrays_of_the_callers_own(openvino, artifact, feeds):
    session = openvino.load(artifact, {"threads": 1, "precision_hint": "f32"})
    first = session.predict(feeds)
    np.testing.assert_array_equal(first["y"], [[2, 4, 6]])
    assert first["z"] == 16001
    session.predict({**feeds, "x": np.zeros((1, 3), np.float32)})
    np.testing.assert_array_equal(first["y"], [[2, 4, 6]])


def test_several_outputs_names_give_one_deterministic_name(openvino, tmp_path):
    model = doubled()
    model.outputs[0].get_tensor().set_names({"zeta", "alpha"})
    ov.save_model(model, str(tmp_path / "model.xml"))
    session = openvino.load(tmp_path / "model.xml", {})
    assert session.outputs[0].name == "alpha"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"x": np.zeros((1, 3), np.float64)}, "'x' is float64"),
        ({"x": np.zeros((1, 4), np.float32)}, r"\[1, 4\]; the model takes float32"),
        ({"other": np.zeros(1)}, "inputs other, rate, x given"),
    ],
)
def test_wrong_feeds_are_errors(openvino, artifact, feeds, changed, said):
    session = openvino.load(artifact, {})
    with pytest.raises(ArtifactError, match=said):
        session.predict({**feeds, **changed})


def test_a_missing_input_is_an_error(openvino, artifact, feeds):
    del feeds["rate"]
    with pytest.raises(ArtifactError, match="the model takes rate, x"):
        openvino.load(artifact, {}).predict(feeds)


def test_a_closed_session_says_so(openvino, artifact, feeds):
    session = openvino.load(artifact, {})
    session.close()
    with pytest.raises(ArtifactError, match="closed"):
        session.predict(feeds)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cache": "here"}, "no option cache; known: device"),
        ({"device": "NPU"}, "expected one of CPU, GPU"),
        ({"precision_hint": "int8"}, "expected one of f32, f16, bf16"),
        ({"threads": 0}, "a number from 1"),
        ({"threads": True}, "a number from 1"),
        ({"streams": "2"}, "a number from 1"),
    ],
)
def test_unknown_options_are_errors(openvino, artifact, options, said):
    with pytest.raises(ArtifactError, match=said):
        openvino.load(artifact, options)


def test_a_device_that_is_not_here_is_named(openvino, artifact):
    if any(name.startswith("GPU") for name in ov.Core().available_devices):
        pytest.skip("this machine has a GPU that OpenVINO finds")
    for ask in (openvino.load, openvino.coverage):
        with pytest.raises(MachineError, match="finds no GPU here"):
            ask(artifact, {"device": "GPU"})


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.xml", b"<x></x>", "root <x>"),
        ("model.xml", b"not xml", "is not XML"),
        ("model.xml", b"", "is not XML"),
        ("model.xml", b"<net name='a'></net>", "bin is not beside it"),
        ("model.pkl", b"", "opens .xml, .onnx and .tflite"),
    ],
)
def test_what_is_no_model_is_refused(openvino, tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=said) as caught:
        openvino.load(tmp_path / name, {})
    assert "\n" not in str(caught.value)


def test_a_truncated_weights_file_is_refused(openvino, artifact, tmp_path):
    (tmp_path / "model.xml").write_bytes(artifact.read_bytes())
    (tmp_path / "model.bin").write_bytes(b"\0")
    with pytest.raises(ArtifactError, match="OpenVINO cannot read"):
        openvino.load(tmp_path / "model.xml", {})


def test_an_absent_file_is_refused(openvino, tmp_path):
    with pytest.raises(ArtifactError, match="no such file"):
        openvino.load(tmp_path / "model.xml", {})


def test_the_cpu_runs_every_node_itself(openvino, artifact):
    coverage = openvino.coverage(artifact, {})
    assert coverage.nodes == 2
    assert coverage.fallback == ()
    assert coverage.providers == ("CPU",)


def test_state_of_the_models_own_starts_afresh(openvino, tmp_path):
    x = opset13.parameter([1], np.float32, name="x")
    before = opset13.read_value(opset13.constant(np.zeros(1, np.float32)), "total")
    total = opset13.add(before, x)
    x.output(0).get_tensor().set_names({"x"})
    total.output(0).get_tensor().set_names({"total"})
    model = ov.Model([total.output(0)], [opset13.assign(total, "total")], [x], "sum")
    ov.save_model(model, str(tmp_path / "model.xml"), compress_to_fp16=False)
    session = openvino.load(tmp_path / "model.xml", {})
    feeds = {"x": np.ones(1, np.float32)}
    assert session.predict(feeds) == session.predict(feeds) == {"total": [1.0]}


def test_telemetry_is_kept_out_of_the_home(openvino, tmp_path):
    assert openvino.version() == ov.__version__.split("-")[0]
    script = "from device_agent.runtimes import runtime; runtime('openvino')"
    subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "HOME": str(tmp_path)},
        cwd=Path(__file__).resolve().parents[3],
        check=True,
    )
    assert list(tmp_path.iterdir()) == []
