"""A torch model on its way to a graph, trained on the way, and made again for tools."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from calibration.dataset import OverlapError  # noqa: E402
from edgeml.cache import Cache  # noqa: E402
from edgeml.errors import PassError  # noqa: E402
from edgeml.passing import Imported, graph_of  # noqa: E402
from edgeml.recipes.recipe import read_recipe  # noqa: E402

CODE = """
import torch
from torch import nn


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
"""
RECIPE = """
[model]
source = "{source}"
name = "small"
version = "1.0.0"
{inputs}

[data]
calibration = "random:4"
validation = "random:4"

[metric]
name = "agreement"

[build]
targets = ["cpu-x86_64"]
"""


def imported(folder: Path, source: str, inputs: str = "") -> Imported:
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(source=source, inputs=inputs))
    return graph_of(read_recipe(path), Cache(folder / "cache"), {}, "", False)


def test_a_factorys_graph_knows_the_module_that_it_came_from(tmp_path: Path) -> None:
    (tmp_path / "small_model.py").write_text(CODE)
    given = "small_model:small", "inputs = { x = [1, 1, 8, 8] }"
    fresh, cached = (imported(tmp_path, *given) for _ in range(2))
    x = np.random.default_rng(0).normal(size=(1, 1, 8, 8)).astype(np.float32)
    for one in (fresh, cached):
        assert one.model.origin is not None
        origin = one.model.origin()
        assert origin.level == "module"
        assert not origin.payload.training
        assert one.model.origin() is origin
        exact = origin.payload(torch.from_numpy(x)).detach().numpy()
        assert np.isfinite(exact).all()
    assert fresh.model == cached.model


def test_a_graph_that_came_as_onnx_has_no_origin(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, [1, 4])],
        [value("y", TensorProto.FLOAT, [1, 4])],
    )
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    assert imported(tmp_path, "model.onnx").model.origin is None


TRAINED_CODE = """
import pathlib, time
import torch
from torch import nn

HERE = pathlib.Path(__file__).parent


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.1),
        nn.Flatten(), nn.Linear(256, 3),
    )


def paced(inputs, generator):
    with (HERE / "steps").open("a") as steps:
        steps.write("step\\n")
    time.sleep(float((HERE / "pace").read_text()))
    noise = torch.randn(inputs["x"].shape, generator=generator)
    return {"x": inputs["x"] + 0.1 * noise}


def broken(inputs, generator):
    raise ValueError("not today")


def segfault(inputs, generator):
    import ctypes
    ctypes.string_at(0)
"""
TRAINED = """
[model]
source = "trained_model:small"
name = "small"
version = "1.0.0"
inputs = {{ x = [1, 1, 6, 6] }}

[data]
calibration = "calibration.npz"
validation = "validation.npz"
train = "train.npz"
label = "y"

[metric]
name = "top1"

[quantize]
precisions = ["fp32"]

[[pass]]
verb = "train"
epochs = 8
batch = 32
checkpoint_s = 1
augment = "trained_model:{augment}"

[build]
targets = ["cpu-x86_64"]
"""
STEPS = 8 * (360 // 32)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """For children: two threads on a busy machine wait for each other."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def project(folder: Path, augment: str = "paced", pace_s: float = 0.0) -> Path:
    """A recipe whose model is trained; the class is where the bright row is."""
    (folder / "trained_model.py").write_text(TRAINED_CODE)
    (folder / "pace").write_text(str(pace_s))
    (folder / "steps").write_text("")
    (folder / "recipe.toml").write_text(TRAINED.format(augment=augment))
    random = np.random.default_rng(0)
    for name, count in (("train", 400), ("validation", 90), ("calibration", 30)):
        rows = random.integers(0, 6, count)
        x = random.normal(size=(count, 1, 6, 6)).astype(np.float32)
        x[np.arange(count), 0, rows] += 2
        np.savez(folder / f"{name}.npz", x=x, y=rows // 2)
    return folder / "recipe.toml"


def steps_of(folder: Path) -> int:
    return (folder / "steps").read_text().count("step")


def trained(path: Path, cache: str = "cache") -> Imported:
    return graph_of(read_recipe(path), Cache(path.parent / cache), {}, "", False)


def test_a_trained_model_is_cached_and_trained_once(tmp_path: Path) -> None:
    path = project(tmp_path)
    first = trained(path)
    assert steps_of(tmp_path) == STEPS
    assert [step.verb for step in first.model.lineage] == ["load", "train", "export"]
    told = first.model.lineage[1].parameters
    assert told["steps"] == STEPS
    assert told["holdout_after"] > max(told["holdout_before"], 0.6)
    assert first.reference_digest == first.digest  # training makes nothing smaller

    again = trained(path)
    assert again.digest == first.digest
    assert again.model.origin is not None
    x = np.load(tmp_path / "validation.npz")["x"][:1]
    with torch.no_grad():
        module = again.model.origin().payload(torch.from_numpy(x)).numpy()
    assert steps_of(tmp_path) == STEPS
    session = pytest.importorskip("onnxruntime").InferenceSession(
        again.model.payload.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    assert np.allclose(session.run(None, {"x": x})[0], module, atol=1e-5)


def test_what_a_training_child_raises_comes_as_what_it_was(tmp_path: Path) -> None:
    path = project(tmp_path, "broken")
    with pytest.raises(
        PassError,
        match="pass 'train' failed: augment trained_model:broken raised ValueError: "
        "not today",
    ):
        trained(path)


@pytest.mark.long
def test_a_crash_in_training_is_an_error_that_names_the_pass(tmp_path: Path) -> None:
    path = project(tmp_path, "segfault")
    with pytest.raises(PassError, match=r"died of SIGSEGV while it was at: .*train"):
        trained(path)


def test_training_samples_among_the_validation_samples(tmp_path: Path) -> None:
    path = project(tmp_path)
    (tmp_path / "train.npz").write_bytes((tmp_path / "validation.npz").read_bytes())
    with pytest.raises(OverlapError):
        trained(path)


def build(folder: Path, out: str) -> "subprocess.Popen[str]":
    """``edgeml build`` in a process; measurements are shared, results are not."""
    return subprocess.Popen(
        [sys.executable, "-m", "edgeml", "build", "recipe.toml", "--out", out],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "measured")},
    )  # fmt: skip


def bundle_of(folder: Path, out: str) -> str:
    """SHA-256 of the bundle that a build gives."""
    process = build(folder, out)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    bundle = folder / out / "small-1.0.0" / "cpu-x86_64.edgeml"
    report = json.loads(bundle.with_name("report.json").read_text())
    assert report["targets"][0]["chosen"]
    return hashlib.sha256(bundle.read_bytes()).hexdigest()


def running_under(folder: Path) -> list[int]:
    """Processes whose working folder is ``folder``."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if (place / "cwd").resolve() == folder and (place / "cmdline").read_bytes():
                found.append(int(place.name))
        except OSError:
            continue
    return found


def until(true, within_s: float = 60.0) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.long
def test_a_build_that_is_killed_in_training_goes_on_there(tmp_path: Path) -> None:
    pace_s = 0.05
    project(tmp_path)
    undisturbed = bundle_of(tmp_path, "undisturbed")
    assert steps_of(tmp_path) == STEPS

    (tmp_path / "steps").write_text("")
    (tmp_path / "pace").write_text(str(pace_s))
    process = build(tmp_path, "killed")
    kept = tmp_path / "killed" / ".cache" / "training"
    until(lambda: [*kept.glob("*/train/checkpoint")] and steps_of(tmp_path) >= 45)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    until(lambda: not running_under(tmp_path))  # the child ends with its parent
    killed_at = steps_of(tmp_path)
    assert killed_at < STEPS

    (tmp_path / "pace").write_text("0")
    assert bundle_of(tmp_path, "killed") == undisturbed
    lost = steps_of(tmp_path) - STEPS
    assert 0 <= lost <= 1.0 / pace_s + 2
    assert bundle_of(tmp_path, "killed") == undisturbed
    assert steps_of(tmp_path) == STEPS + lost
