"""What is ONNX Runtime's own: options, messages, providers."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from device_agent.contract.errors import ArtifactError, MachineError
from device_agent.runtimes.onnxruntime import GPU_OPTIONS, OnnxRuntime, reason


def saved(path: Path, op: str, domain: str = "") -> Path:
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], "only", domain=domain)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
    )
    imports = [helper.make_opsetid("", 17)]
    imports += [helper.make_opsetid(domain, 1)] if domain else []
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


@pytest.fixture
def relu(tmp_path: Path) -> Path:
    return saved(tmp_path / "relu.onnx", "Relu")


def test_telemetry_is_off():
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_symbolic_dimensions_are_variable(relu: Path):
    session = OnnxRuntime().load(relu, {})
    assert session.inputs[0].shape == (-1, 3)
    for batch in (1, 4):
        feeds = {"x": np.full((batch, 3), -1, np.float32)}
        assert session.predict(feeds)["y"].tolist() == [[0, 0, 0]] * batch


def test_an_unknown_operator_is_named_without_source_paths(tmp_path: Path):
    path = saved(tmp_path / "custom.onnx", "Frobnicate", "acme")
    with pytest.raises(ArtifactError) as caught:
        OnnxRuntime().load(path, {})
    text = str(caught.value)
    assert "Frobnicate" in text
    assert "\n" not in text and ".cc" not in text and str(tmp_path) not in text


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("threads", 0),
        ("threads", True),
        ("arena", 1),
        ("provider", "npu"),
        ("graph_optimization", "maximal"),
        ("affinity", "0"),
    ],
)
def test_an_option_of_no_sense_is_refused(relu: Path, option: str, value: object):
    with pytest.raises(ArtifactError, match=option):
        OnnxRuntime().load(relu, {option: value})  # type: ignore[dict-item]


def test_every_option_is_taken(relu: Path):
    options = {
        "threads": 2,
        "inter_threads": 1,
        "spinning": True,
        "arena": False,
        "x64quantprecision": True,
        "graph_optimization": "extended",
        "provider": "cpu",
    }
    assert options.keys() | GPU_OPTIONS.keys() == OnnxRuntime.options
    OnnxRuntime().load(relu, options)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_missing_provider_never_becomes_the_cpu(relu: Path, provider: str):
    import onnxruntime

    if len(onnxruntime.get_available_providers()) > 2:
        pytest.skip("this onnxruntime has GPU providers")
    for call in (OnnxRuntime().load, OnnxRuntime().coverage):
        with pytest.raises(MachineError, match="onnxruntime-gpu"):
            call(relu, {"provider": provider})


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "[ONNXRuntimeError] : 1 : FAIL : Load model from /a failed:bad thing",
            "bad thing",
        ),
        ("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : two\nlines", "two lines"),
        ("", "RuntimeError"),
    ],
)
def test_reasons_are_one_clean_line(said: str, told: str):
    assert reason(RuntimeError(said)) == told
