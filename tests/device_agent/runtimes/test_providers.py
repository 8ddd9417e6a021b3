"""Providers of ONNX Runtime: their options, and that none falls back in silence.

No GPU is needed. Where one has to be there, ONNX Runtime's Azure provider stands in: it
is in every wheel, starts everywhere and takes no node of an ordinary graph.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from device_agent.contract.errors import ArtifactError, MachineError
from device_agent.runtimes import onnxruntime as module
from device_agent.runtimes.base import ON_DEVICE, placed
from device_agent.runtimes.onnxruntime import GPU_OPTIONS, PROVIDERS, OnnxRuntime

STAND_IN = "AzureExecutionProvider"
REAL = [one for one in ("cuda", "tensorrt") if PROVIDERS[one]
        in ort.get_available_providers()]  # fmt: skip
X = {"x": np.array([[-1, 0, 2]], np.float32)}


@pytest.fixture
def relu(tmp_path: Path) -> Path:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], "only")], "one",
        [value("x", TensorProto.FLOAT, [1, 3])],
        [value("y", TensorProto.FLOAT, [1, 3])],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 17)]
    path = tmp_path / "relu.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that is called cuda, starts, and takes no node."""
    if STAND_IN not in ort.get_available_providers():
        pytest.skip(f"this onnxruntime has no {STAND_IN}")
    monkeypatch.setitem(PROVIDERS, "cuda", STAND_IN)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What ONNX Runtime was asked for, where every provider is installed."""
    calls: list[dict[str, Any]] = []

    class Session:
        def __init__(self, path: str, settings: ort.SessionOptions, **given: Any):
            entry = "session.disable_cpu_ep_fallback"
            strict = settings.get_session_config_entry(entry)
            calls.append({**given, "strict": strict})
            self._names = given["providers"]

        def get_providers(self) -> list[str]:
            return [*self._names, PROVIDERS["cpu"]]

        def get_inputs(self) -> list[Any]:
            return []

        get_outputs = get_inputs

    monkeypatch.setattr(module.ort, "InferenceSession", Session)
    monkeypatch.setattr(module.ort, "get_available_providers",
                        lambda: list(PROVIDERS.values()))  # fmt: skip
    return calls


def test_a_node_that_the_gpu_does_not_take_is_an_error(relu: Path, stand_in: None):
    with pytest.raises(ArtifactError, match=f"{STAND_IN} does not take every node"):
        OnnxRuntime().load(relu, {"provider": "cuda"})


def test_what_is_allowed_may_run_on_the_cpu_and_coverage_says_what(
    relu: Path, stand_in: None
):
    options = {"provider": "cuda", "cpu_fallback": True}
    session = OnnxRuntime().load(relu, options)
    assert session.predict(X)["y"].tolist() == [[0, 0, 2]]
    for one in (options, {"provider": "cuda"}):
        coverage = OnnxRuntime().coverage(relu, one)
        assert coverage.fallback == ("Relu only",)
        assert coverage.fallback_share == 1.0
        assert coverage.providers[0] == STAND_IN


def test_a_session_on_other_providers_than_those_asked_for_is_an_error(
    relu: Path, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    for found in (["cpu"], ["cuda", "cpu"]):
        names = [PROVIDERS[one] for one in found]
        monkeypatch.setattr(
            module.ort.InferenceSession, "get_providers", lambda _, names=names: names
        )
        with pytest.raises(MachineError, match="do not start here"):
            OnnxRuntime().load(relu, {"provider": "tensorrt"})


def test_what_cuda_is_told(relu: Path, asked: list[dict[str, Any]]):
    OnnxRuntime().load(
        relu, {"provider": "cuda", "memory_limit_bytes": 1 << 30, "arena": False}
    )
    (call,) = asked
    assert call["providers"] == ["CUDAExecutionProvider"]
    assert call["provider_options"] == [{
        "device_id": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
        "gpu_mem_limit": str(1 << 30),
    }]  # fmt: skip
    assert call["strict"] == "1", "nothing may run on the CPU"
    assert call["enable_fallback"] == 0, "ONNX Runtime's own retry is off"


def test_what_tensorrt_is_told(relu: Path, asked: list[dict[str, Any]], tmp_path: Path):
    options = {
        "provider": "tensorrt", "fp16": True, "device_id": 1,
        "engine_cache": str(tmp_path), "workspace_bytes": 1 << 28,
    }  # fmt: skip
    OnnxRuntime().load(relu, options)
    (call,) = asked
    assert call["providers"] == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    first, second = call["provider_options"]
    assert first == {
        "device_id": "1",
        "trt_fp16_enable": "True",
        "trt_int8_enable": "False",
        "trt_max_workspace_size": str(1 << 28),
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(tmp_path),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(tmp_path),
    }
    assert second["device_id"] == "1", "CUDA runs the rest on the same GPU"


@pytest.mark.parametrize("cache", ["", ON_DEVICE])
def test_without_a_folder_no_engine_is_kept(
    relu: Path, asked: list[dict[str, Any]], cache: str
):
    OnnxRuntime().load(relu, {"provider": "tensorrt", "engine_cache": cache})
    assert asked[0]["provider_options"][0]["trt_engine_cache_enable"] == "False"
    assert "trt_engine_cache_path" not in asked[0]["provider_options"][0]


@pytest.mark.parametrize("cache", ["engines", "/nowhere/at/all"])
def test_a_folder_that_is_not_there_is_refused(
    relu: Path, asked: list[dict[str, Any]], cache: str
):
    with pytest.raises(ArtifactError, match="engine_cache"):
        OnnxRuntime().load(relu, {"provider": "tensorrt", "engine_cache": cache})


@pytest.mark.parametrize("option", sorted(GPU_OPTIONS))
def test_an_option_of_a_gpu_says_nothing_to_the_cpu(relu: Path, option: str):
    value = {
        "cpu_fallback": True, "device_id": 1, "memory_limit_bytes": 1, "tf32": True,
        "convolutions": "default", "fp16": True, "int8": True, "workspace_bytes": 1,
        "engine_cache": ON_DEVICE,
    }[option]  # fmt: skip
    with pytest.raises(ArtifactError, match=f"{option} belongs to provider"):
        OnnxRuntime().load(relu, {option: value})
    if GPU_OPTIONS[option] == ("tensorrt",):
        with pytest.raises(ArtifactError, match="the provider is cuda"):
            OnnxRuntime().load(relu, {"provider": "cuda", option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("device_id", -1), ("device_id", "0"), ("fp16", 1), ("convolutions", "fast"),
        ("memory_limit_bytes", -1), ("engine_cache", False),
    ],
)  # fmt: skip
def test_an_option_of_no_sense_is_refused(relu: Path, option: str, value: Any):
    with pytest.raises(ArtifactError, match=option):
        OnnxRuntime().load(relu, {"provider": "tensorrt", option: value})


def test_a_bundle_asks_for_a_cache_and_the_device_says_where(tmp_path: Path):
    asks = {"threads": 1, "engine_cache": ON_DEVICE}
    assert placed(asks, tmp_path) == {"threads": 1, "engine_cache": str(tmp_path)}
    assert placed(asks, None) == asks
    assert placed({"threads": 1}, tmp_path) == {"threads": 1}
    for folder in ("/etc", str(tmp_path)):
        with pytest.raises(ArtifactError, match="the device chooses the folder"):
            placed({"engine_cache": folder}, tmp_path)


@pytest.mark.skipif(not REAL, reason="no GPU provider in this onnxruntime")
@pytest.mark.parametrize("provider", REAL)
def test_on_a_real_gpu(relu: Path, provider: str):
    session = OnnxRuntime().load(relu, {"provider": provider})
    assert session.predict(X)["y"].tolist() == [[0, 0, 2]]
    coverage = OnnxRuntime().coverage(relu, {"provider": provider})
    assert coverage.fallback == ()
    assert coverage.providers[0] == PROVIDERS[provider]
