"""Every runtime in the table keeps what ``runtimes/base.py`` promises.

One network for all, in the file that each takes.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from device_agent.contract.errors import ArtifactError
from device_agent.runtimes import RUNTIMES, runtime


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "w": random.standard_normal((4, 2, 3, 3)).astype(np.float32),
        "b": random.standard_normal(4).astype(np.float32),
    }


def onnx_file(path: Path, weights: dict[str, np.ndarray]) -> None:
    """One 3×3 convolution and a Relu, over [1, 2, 5, 5]."""
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv"),
            helper.make_node("Relu", ["c"], ["y"], "relu"),
        ],
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 3, 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


def tflite_file(path: Path, weights: dict[str, np.ndarray]) -> None:
    """The same network, field by field."""
    tflites = pytest.importorskip("tflites", reason="ai-edge-litert has the schema")
    path.write_bytes(tflites.network(weights["w"], weights["b"], 5, 5))


FILES: dict[str, tuple[str, Callable[[Path, dict[str, np.ndarray]], None]]] = {
    "onnxruntime": ("model.onnx", onnx_file),
    "openvino": ("model.onnx", onnx_file),
    "litert": ("model.tflite", tflite_file),
}


@pytest.fixture(params=sorted(RUNTIMES))
def engine(request: pytest.FixtureRequest):
    return runtime(request.param)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, weights) -> Callable[[str], Path]:
    """The network for a runtime, made once."""
    folder = tmp_path_factory.mktemp("model")

    @cache
    def file(name: str) -> Path:
        entry, write = FILES[name]
        (folder / name).mkdir()
        path = folder / name / entry
        write(path, weights)
        return path

    return file


@pytest.fixture
def convolution(engine, files) -> Path:
    return files(engine.name)


def sample(seed: int = 0) -> dict[str, np.ndarray]:
    values = np.random.default_rng(seed).standard_normal((1, 2, 5, 5))
    return {"x": values.astype(np.float32)}


def test_the_numbers_are_those_of_the_float32_oracle(engine, convolution, weights):
    """The oracle is the definition of a convolution, in numpy."""
    feeds = sample()
    windows = np.lib.stride_tricks.sliding_window_view(feeds["x"], (3, 3), axis=(2, 3))
    wanted = np.einsum("nihwkl,oikl->nohw", windows, weights["w"])
    wanted = np.maximum(wanted + weights["b"].reshape(1, 4, 1, 1), 0)
    found = engine.load(convolution, {}).predict(feeds)
    np.testing.assert_allclose(found["y"], wanted, rtol=1e-5, atol=1e-5)


def test_a_session_declares_what_the_artifact_declares(engine, convolution):
    session = engine.load(convolution, {})
    assert [(s.name, s.datatype, s.shape) for s in session.inputs] == [
        ("x", "FP32", (1, 2, 5, 5))
    ]
    assert [(s.name, s.datatype, s.shape) for s in session.outputs] == [
        ("y", "FP32", (1, 4, 3, 3))
    ]


def test_the_same_feeds_give_the_same_bytes(engine, convolution):
    first, second = engine.load(convolution, {}), engine.load(convolution, {})
    wanted = first.predict(sample())["y"].tobytes()
    first.predict(sample(1))
    assert first.predict(sample())["y"].tobytes() == wanted
    assert second.predict(sample())["y"].tobytes() == wanted


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"x": sample()["x"], "more": sample()["x"]},
        {"x": sample()["x"].astype(np.float64)},
        {"x": sample()["x"][:, :1]},
        {"x": sample()["x"][0]},
    ],
    ids=["missing", "unknown", "type", "shape", "rank"],
)
def test_wrong_feeds_are_refused(engine, convolution, feeds):
    with pytest.raises(ArtifactError):
        engine.load(convolution, {}).predict(feeds)


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 99], ids=str)
def test_a_bad_file_is_an_artifact_error_in_one_line(engine, tmp_path, content):
    path = tmp_path / f"bad{Path(FILES[engine.name][0]).suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        engine.load(path, {})
    assert "\n" not in str(caught.value)


def test_an_unknown_option_is_refused(engine, convolution):
    with pytest.raises(ArtifactError, match="no_such_option"):
        engine.load(convolution, {"no_such_option": 1})


def test_a_closed_session_is_refused(engine, convolution):
    session = engine.load(convolution, {})
    session.close()
    with pytest.raises(ArtifactError):
        session.predict(sample())


def test_everything_in_a_small_network_is_covered(engine, convolution):
    coverage = engine.coverage(convolution, {})
    assert coverage.nodes > 0
    assert coverage.fallback == ()
