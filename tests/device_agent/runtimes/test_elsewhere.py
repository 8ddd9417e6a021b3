"""A session in another process: the same answers, and its death is an error."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from device_agent.contract.errors import ArtifactError
from device_agent.runtimes import elsewhere, runtime
from device_agent.runtimes.elsewhere import Elsewhere

PYTHON = Path(sys.executable)
X = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    import onnx
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Exp", ["x"], ["y"])], "it",
        [value("x", TensorProto.FLOAT, ["n", 3])],
        [value("y", TensorProto.FLOAT, ["n", 3])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return path


def test_it_answers_as_a_session_here(artifact: Path) -> None:
    here = runtime("onnxruntime").load(artifact, {"threads": 1})
    there = Elsewhere(PYTHON, "onnxruntime", artifact, {"threads": 1})
    assert (there.inputs, there.outputs) == (here.inputs, here.outputs)
    for scale in (1, -2, 0):
        feed = {"x": X["x"] * scale}
        np.testing.assert_array_equal(there.predict(feed)["y"], here.predict(feed)["y"])
    there.close()
    there.close()


def test_a_wrong_input_is_an_error_and_not_the_end(artifact: Path) -> None:
    there = Elsewhere(PYTHON, "onnxruntime", artifact, {})
    with pytest.raises(ArtifactError, match="z"):
        there.predict({"z": X["x"]})
    assert there.predict(X)["y"].shape == (2, 3)
    there.close()


def test_what_the_runtime_refuses_is_told(artifact: Path) -> None:
    artifact.write_bytes(b"no model")
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        Elsewhere(PYTHON, "onnxruntime", artifact, {})


def test_a_python_that_ends_is_told(artifact: Path) -> None:
    with pytest.raises(ArtifactError, match="ended with exit code 1"):
        Elsewhere(Path("/bin/false"), "onnxruntime", artifact, {})


def test_a_process_that_was_killed_is_told(artifact: Path) -> None:
    there = Elsewhere(PYTHON, "onnxruntime", artifact, {})
    os.kill(there._process.pid, signal.SIGSEGV)
    with pytest.raises(ArtifactError, match="ended with SIGSEGV"):
        there.predict(X)
    there.close()


def test_no_answer_in_time_ends_it(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Elsewhere(PYTHON, "onnxruntime", artifact, {})
    os.kill(there._process.pid, signal.SIGSTOP)
    monkeypatch.setattr(elsewhere, "WAIT_S", 0.2)
    with pytest.raises(ArtifactError, match="no answer within"):
        there.predict(X)
    assert there._process.poll() is not None
    with pytest.raises(ArtifactError):
        there.predict(X)


def test_the_process_ends_with_its_session(artifact: Path) -> None:
    there = Elsewhere(PYTHON, "onnxruntime", artifact, {})
    there.close()
    deadline = time.monotonic() + 10
    while Path("/proc", str(there._process.pid)).exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
