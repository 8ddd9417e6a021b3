"""u8×s8 products saturate on x86 without VNNI: what ships must not answer wrong there.

The host without VNNI is QEMU's Haswell, a real one as far as ONNX Runtime can tell.
The network is made for it: inputs near the top of their range, weights of one sign in
each filter, so that two neighbouring 8-bit products do not fit into 16 bits.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import onnx
import pytest
from commands import ROOT, edgeml
from onnx import TensorProto, helper, numpy_helper

from device_agent.contract import machine
from device_agent.contract.bundle import read_bundle

pytestmark = pytest.mark.long

QEMU = "qemu-x86_64-static"
# without what QEMU would only warn that it does not emulate
HASWELL = "Haswell,-pcid,-x2apic,-tsc-deadline,-hle,-invpcid,-rtm"
VNNI = "avx512_vnni|avx_vnni"
EXACT, NAIVE, OPENVINO = "cpu-x86_64", "cpu-x86_64-vnni", "openvino-cpu"
CHANNELS = 32

RECIPE = """\
[model]
source = "model.onnx"
name = "saturates"
version = "1.0.0"

[data]
calibration = "calibration.npz"
validation = "validation.npz"

[metric]
name = "agreement"

[budget]
max_accuracy_drop = 0.2
max_size_bytes = 30000  # 8-bit weights only

[quantize]
quantizers = ["{quantizer}"]
methods = ["minmax"]
precisions = ["int8"]
mixed = false

[build]
targets = [{targets}]
"""


@dataclass(frozen=True)
class Emulated:
    """A Python that believes it runs on a Haswell, and so do its children."""

    python: Path
    folder: Path

    def check(self, bundle: Path, *more: str) -> tuple[int, dict[str, Any]]:
        """The device's check in the guest: exit code and report."""
        done = subprocess.run(
            [str(self.python), "-m", "device_agent", "check", str(bundle), "--json",
             "--runs", "10", *more],
            cwd=ROOT, capture_output=True, text=True, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(self.folder)},
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def haswell(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    if platform.machine() != "x86_64":
        pytest.skip("the host is not x86_64")
    if shutil.which(QEMU) is None:
        pytest.skip(f"{QEMU} is absent (apt install qemu-user-static)")
    if machine.lacks([VNNI], machine.features()):
        pytest.skip(f"the host has no {VNNI}, so it cannot build for {NAIVE}")
    return emulated(tmp_path_factory.mktemp("haswell"))


def emulated(folder: Path) -> Emulated:
    """A virtual environment whose ``python`` starts QEMU.

    ``sys.executable`` is the script itself, so that processes which the guest starts
    are emulated too: QEMU's user mode hands ``execve`` to the host.
    """
    python = folder / "bin" / "python"
    python.parent.mkdir()
    home = Path(sys.prefix)
    shutil.copy(home / "pyvenv.cfg", folder)
    (folder / "lib").symlink_to(home / "lib")
    real = Path(sys.executable).resolve()
    python.write_text(f'#!/bin/sh\nexec {QEMU} -cpu {HASWELL} -0 "$0" "{real}" "$@"\n')
    python.chmod(0o755)
    return Emulated(python, folder)


@pytest.fixture(scope="module")
def work(haswell: Emulated, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saturates")
    generator = np.random.default_rng(0)
    for name, count in (("calibration", 40), ("validation", 40)):
        samples = generator.uniform(0.7, 1, (count, CHANNELS, 8, 8))
        np.savez(folder / name, x=samples.astype(np.float32))
    (folder / "model.onnx").write_bytes(network(generator).SerializeToString())
    return folder


def build(work: Path, quantizer: str, *targets: str) -> Path:
    """The folder of the release."""
    recipe = work / f"{quantizer}.toml"
    names = ", ".join(map(repr, targets))
    recipe.write_text(RECIPE.format(quantizer=quantizer, targets=names))
    out = work / f"build-{quantizer}"
    done = edgeml("build", recipe, "--out", out, cache=work / "cache")
    assert done.code == 0, done.err
    return out / "saturates-1.0.0"


@pytest.fixture(scope="module")
def built(work: Path) -> Path:
    return build(work, "ort", EXACT, NAIVE)


def network(generator: np.random.Generator) -> onnx.ModelProto:
    """conv 3×3 → relu → mean → linear; filters of one sign, ±127 in eight bits."""
    shape = (CHANNELS, CHANNELS, 3, 3)
    sign = np.where(np.arange(CHANNELS) % 2, -1, 1).reshape(-1, 1, 1, 1)
    arrays = {
        "filters": sign * generator.uniform(0.9, 1, shape) / 50,
        "bias": np.where(np.arange(CHANNELS) % 2, 6, -4),
        "head": generator.normal(0, 1, (CHANNELS, 10)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "filters", "bias"], ["a"], "conv", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("GlobalAveragePool", ["b"], ["c"], "mean"),
        helper.make_node("Flatten", ["c"], ["d"], "flatten"),
        helper.make_node("MatMul", ["d", "head"], ["y"], "linear"),
    ]
    graph = helper.make_graph(
        nodes, "saturates",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(array.astype(np.float32), name)
         for name, array in arrays.items()],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8)


def test_the_guest_and_its_children_have_no_vnni(haswell: Emulated) -> None:
    code = (
        "import subprocess, sys\n"
        "from device_agent.contract import machine\n"
        "print(sorted(machine.features() & {'avx2', 'avx512_vnni', 'avx_vnni'}))\n"
        "if len(sys.argv) == 2: "
        "subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)\n"
    )
    done = subprocess.run(
        [str(haswell.python), "-c", code, code],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["['avx2']"] * 2


def test_both_bundles_hold_eight_bits_and_pass_on_the_host(
    built: Path, tmp_path: Path
) -> None:
    for target in (EXACT, NAIVE):
        manifest = read_bundle(built / f"{target}.edgeml").manifest
        assert manifest.precision == "int8"
        done = edgeml("check", built / f"{target}.edgeml", cache=tmp_path)
        assert done.code == 0, done.err


def test_what_needs_vnni_says_so_and_is_refused_without(
    built: Path, haswell: Emulated
) -> None:
    bundle = built / f"{NAIVE}.edgeml"
    assert VNNI in read_bundle(bundle).manifest.isa.requires
    code, report = haswell.check(bundle)
    assert code == 3
    assert report["failure"]["step"] == "isa"
    assert VNNI in report["failure"]["reason"]


def test_without_the_refusal_it_would_answer_wrong(
    built: Path, haswell: Emulated
) -> None:
    """Proof that the network saturates there, so that the next test can fail."""
    claimed = "avx2,fma,f16c,avx512_vnni"
    bundle = built / f"{NAIVE}.edgeml"
    code, report = haswell.check(bundle, "--machine-features", claimed)
    assert code == 3
    assert report["failure"]["step"] == "golden"
    assert len(report["golden_wrong"]) >= report["golden_vectors"] // 2


def test_what_does_not_need_vnni_is_right_without(
    built: Path, haswell: Emulated
) -> None:
    code, report = haswell.check(built / f"{EXACT}.edgeml")
    assert code == 0, report["failure"]
    assert report["golden_wrong"] == []
    assert report["argmax_flips"] == 0


def test_edgeml_check_emulates_the_processor_itself(
    built: Path, tmp_path: Path
) -> None:
    """By the pinned QEMU, without a virtual environment made by hand."""
    if not foreign.lent(tmp_path):
        pytest.skip("no emulator (edgeml emulator setup makes it)")
    done = edgeml(
        "check", built / f"{NAIVE}.edgeml", "--cpu", "Haswell", cache=tmp_path
    )
    assert done.code == 3
    assert f"isa: needs {VNNI}; Haswell has not" in done.err
    done = edgeml(
        "check", built / f"{EXACT}.edgeml", "--cpu", "Haswell", cache=tmp_path
    )
    assert done.code == 0, done.err
    assert "0 flips against the host" in done.out


def test_openvino_is_right_without_vnni(work: Path, haswell: Emulated) -> None:
    bundle = build(work, "nncf", OPENVINO) / f"{OPENVINO}.edgeml"
    assert read_bundle(bundle).manifest.precision == "int8"
    code, report = haswell.check(bundle)
    assert code == 0, report["failure"]
    assert report["max_abs_diff"] < 1e-4
