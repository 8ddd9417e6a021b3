"""What an artifact does to its process stays in that process."""

import subprocess
import sys
from pathlib import Path

import bundles
import numpy as np
import pytest
from agents import ROOT

from device_agent.contract.errors import ArtifactError, MachineError
from device_agent.runtimes.probe import ProbeLimits, ProbeRequest, probe


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(bundles.linear())
    return path


def test_outputs_latency_and_memory(model: Path) -> None:
    feeds = bundles.vectors(3)
    result = probe(ProbeRequest(model, "onnxruntime", feeds=feeds, runs=20))
    for want, got in zip(bundles.answers(), result.outputs, strict=False):
        np.testing.assert_allclose(got["y"], want["y"], rtol=1e-5)
    assert len(result.latencies_ms) == 20
    assert min(result.latencies_ms) > 0
    assert result.peak_memory_bytes > result.baseline_bytes > 1 << 20
    assert result.load_ms > 0


def test_runs_are_bounded_in_time(model: Path) -> None:
    request = ProbeRequest(
        model, "onnxruntime", feeds=bundles.vectors(1),
        runs=10**9, runs_min=5, seconds=0.0,
    )  # fmt: skip
    assert 5 <= len(probe(request).latencies_ms) < 1000


def test_an_artifact_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x0a" + b"\xff" * 100)
    with pytest.raises(ArtifactError, match=r"^model\.onnx"):
        probe(ProbeRequest(path, "onnxruntime"))


def test_feeds_that_do_not_fit(model: Path) -> None:
    feeds = [{"x": np.zeros((1, 5), np.float32)}]
    with pytest.raises(ArtifactError, match="'x'"):
        probe(ProbeRequest(model, "onnxruntime", feeds=feeds))


def test_a_runtime_that_is_not_here(model: Path) -> None:
    with pytest.raises(MachineError, match="no runtime"):
        probe(ProbeRequest(model, "abacus"))


def test_the_clock_ends_it(model: Path) -> None:
    request = ProbeRequest(
        model, "onnxruntime", feeds=bundles.vectors(1), runs=10**9, seconds=60.0,
        limits=ProbeLimits(wall_s=1.0),
    )  # fmt: skip
    with pytest.raises(ArtifactError, match="not done within 1 s"):
        probe(request)


def test_processor_time_ends_it(model: Path) -> None:
    request = ProbeRequest(
        model, "onnxruntime", feeds=bundles.vectors(1), runs=10**9, seconds=60.0,
        limits=ProbeLimits(cpu_s=1),
    )  # fmt: skip
    with pytest.raises(ArtifactError, match="more than 1 s of processor time"):
        probe(request)


def test_memory_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(bundles.linear(np.ones((4096, 4096), np.float32)))
    request = ProbeRequest(
        path, "onnxruntime", limits=ProbeLimits(address_bytes=300 << 20)
    )
    with pytest.raises(ArtifactError, match="bytes of address space"):
        probe(request)


@pytest.mark.parametrize("room", [100, 1000])  # for no file, and for the first
def test_a_full_disk_is_no_fault_of_the_artifact(tmp_path: Path, room: int) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(bundles.linear(np.ones((4, 4000), np.float32)))
    code = (
        "import errno, resource, sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from device_agent.runtimes.probe import ProbeRequest, probe\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
        "feeds = [{'x': np.ones((1, 4), np.float32)}]\n"
        "try:\n"
        "    path = Path(sys.argv[1])\n"
        "    probe(ProbeRequest(path, 'onnxruntime', feeds=feeds, runs=1))\n"
        "except OSError as error:\n"
        "    print(errno.errorcode[error.errno])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(room)],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout == "EFBIG\n"
