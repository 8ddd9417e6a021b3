"""From a file to a session that is right."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import psutil
import pytest

from device_agent.config import SandboxConfig
from device_agent.contract.errors import ArtifactError
from device_agent.contract.manifest import RuntimeSpec
from device_agent.contract.tensors import TensorSpec
from device_agent.errors import RefusedError
from device_agent.runtimes import probe as probing
from device_agent.serving import loading
from device_agent.serving.loading import discard, load, release, reopen
from edgeml.bundling.bundle import pack

SANDBOX = SandboxConfig()
X = {"x": np.ones((1, 4), np.float32)}
Y = np.maximum(X["x"] @ bundles.WEIGHT, 0)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def to(raw: bytes, name: str = "it.edgeml") -> Path:
        path = tmp_path / name
        path.write_bytes(raw)
        return path

    return to


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which artifacts were tried in a process of their own."""
    tried: list[str] = []
    ask = probing._ask

    def counted(document: dict[str, Any], request: Any) -> dict[str, Any]:
        tried.append(document["artifact"])
        return ask(document, request)

    monkeypatch.setattr(probing, "_ask", counted)
    return tried


def folders(state: Path) -> list[str]:
    return [path.name for path in (state / "run").iterdir()]


def test_a_good_bundle(write: Callable[..., Path], state: Path) -> None:
    path = write(bundles.bundle(preprocess=({"scale": 2.0},)))
    loaded = load(path, state, SANDBOX)
    np.testing.assert_allclose(loaded.session.predict(X)["y"], Y, rtol=1e-6)
    assert loaded.source == path
    assert loaded.manifest.name == "linear"
    assert 0 < loaded.latency_ns < 1e9
    assert loaded.postprocess.labels == ("a", "b", "c")
    assert loaded.preprocess(np.ones(4, np.float32)).tolist() == [2.0] * 4
    assert (loaded.folder / "artifact" / "model.onnx").is_file()
    assert loaded.folder.is_relative_to(state / "run")
    discard(loaded)
    assert folders(state) == []
    with pytest.raises(ArtifactError, match="closed"):
        loaded.session.predict(X)
    discard(loaded)


def test_what_passed_once_is_not_tried_again(
    write: Callable[..., Path], state: Path, probes: list[str]
) -> None:
    path = write(bundles.bundle())
    for _ in range(2):
        discard(load(path, state, SANDBOX))
    assert len(probes) == 1
    discard(load(path, state, replace(SANDBOX, cpu_s=59)))
    (record,) = (state / "admitted").iterdir()
    record.write_text(json.dumps({**json.loads(record.read_text()), "machine": "?"}))
    discard(load(path, state, SANDBOX))
    assert len(probes) == 3


def test_what_was_refused_is_tried_again(
    write: Callable[..., Path], state: Path, probes: list[str]
) -> None:
    path = write(bundles.bundle(golden=bundles.WEIGHT + np.float32(1)))
    for _ in range(2):
        with pytest.raises(RefusedError, match=r"^golden: .* vectors are wrong"):
            load(path, state, SANDBOX)
    assert len(probes) == 2
    assert folders(state) == []
    assert not (state / "admitted").exists()


def test_wrong_in_this_process_only(
    write: Callable[..., Path], state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record vouches for the sandbox; this process looks for itself."""
    path = write(bundles.bundle(golden=bundles.WEIGHT + np.float32(1)))
    monkeypatch.setattr(loading, "is_admitted", lambda *_: True)
    with pytest.raises(RefusedError, match=r"^golden: .* vectors are wrong"):
        load(path, state, SANDBOX)
    assert folders(state) == []


def test_the_devices_defaults(
    write: Callable[..., Path], state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from device_agent.runtimes.onnxruntime import OnnxRuntime

    asked: list[dict[str, Any]] = []
    plain = OnnxRuntime.load
    monkeypatch.setattr(
        OnnxRuntime, "load",
        lambda self, path, options: (
            asked.append(dict(options)), plain(self, path, options),
        )[1],
    )  # fmt: skip
    own = RuntimeSpec(name="onnxruntime", min_version="1", options={"arena": True})
    discard(load(write(bundles.bundle()), state, SANDBOX))
    discard(load(write(bundles.bundle(runtime=own)), state, SANDBOX))
    assert asked == [
        {"arena": False, "spinning": False},
        {"arena": True, "spinning": False},
    ]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"outputs": ("z", "FP32", (-1, 3))}, "outputs are z FP32"),
        ({"outputs": ("y", "FP64", (-1, 3))}, "outputs are y FP64"),
        ({"outputs": ("y", "FP32", (-1,))}, r"outputs are y FP32 \[-1\]"),
        ({"outputs": ("y", "FP32", (-1, -1))}, r"outputs are y FP32 \[-1, -1\]"),
    ],
)
def test_another_signature(
    write: Callable[..., Path], state: Path, changes: dict[str, Any], text: str
) -> None:
    specs = {
        field: (TensorSpec(name=name, datatype=datatype, shape=shape),)
        for field, (name, datatype, shape) in changes.items()
    }
    with pytest.raises(RefusedError, match=rf"^signature: .*{text}"):
        load(write(bundles.bundle(**specs)), state, SANDBOX)
    assert folders(state) == []


def test_a_fixed_batch_of_a_variable_one(
    write: Callable[..., Path], state: Path
) -> None:
    one = TensorSpec(name="x", datatype="FP32", shape=(1, 4))
    discard(load(write(bundles.bundle(inputs=(one,))), state, SANDBOX))


@pytest.mark.parametrize(
    ("member", "text"),
    [
        (b"{", "labels.json' is not JSON"),
        (b'{"a": 1}', "labels.json' is not a list of texts"),
        (b"[1]", "labels.json' is not a list of texts"),
    ],
)
def test_labels_that_are_none(
    write: Callable[..., Path], state: Path, member: bytes, text: str
) -> None:
    members = {**bundles.members(), "labels.json": ("labels", member)}
    with pytest.raises(RefusedError, match=f"^bundle: .*{text}"):
        load(write(pack(bundles.manifest(), members)), state, SANDBOX)


def test_golden_vectors_too_large_for_this_process(
    write: Callable[..., Path], state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "GOLDEN_BYTES_MAX", 1000)
    with pytest.raises(
        RefusedError, match=r"^bundle: .*'golden\.npz' has .* at most 1"
    ):
        load(write(bundles.bundle()), state, SANDBOX)


def test_a_file_that_is_not_there(tmp_path: Path, state: Path) -> None:
    with pytest.raises(RefusedError, match=r"^bundle: .*absent"):
        load(tmp_path / "absent.edgeml", state, SANDBOX)


def test_a_file_that_changes_meanwhile(write: Callable[..., Path], state: Path) -> None:
    path = write(bundles.bundle())
    bundle = loading.read(path)
    path.write_bytes(bundles.bundle(bundles.WEIGHT * 2))
    with pytest.raises(RefusedError, match="changed"):
        loading.examine(bundle, path, state, SANDBOX)
    path.write_bytes(bundles.bundle())
    candidate = loading.examine(bundle, path, state, SANDBOX)
    path.write_bytes(bundles.bundle(bundles.WEIGHT * 2))
    with pytest.raises(RefusedError, match="changed"):
        loading.bring_up(candidate, state, SANDBOX)
    assert folders(state) == []


def test_a_state_directory_that_cannot_be_written(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "state").write_bytes(b"")
    with pytest.raises(RefusedError, match=r"^bundle: .*state"):
        load(write(bundles.bundle()), tmp_path / "state", SANDBOX)


def test_opened_again_when_its_file_is_gone(
    write: Callable[..., Path], state: Path
) -> None:
    path = write(bundles.bundle())
    loaded = load(path, state, SANDBOX)
    release(loaded)
    path.unlink()
    again = reopen(loaded)
    np.testing.assert_allclose(again.session.predict(X)["y"], Y, rtol=1e-6)
    release(again)
    (again.folder / "artifact" / "model.onnx").write_bytes(
        bundles.linear(bundles.WEIGHT + np.float32(1))
    )
    with pytest.raises(RefusedError, match=r"^golden:"):
        reopen(again)
    assert again.folder.exists()
    discard(again)
    assert folders(state) == []


def test_memory_goes_back_to_the_system(
    write: Callable[..., Path], state: Path
) -> None:
    """A model of 32 MB, and its file once more while it is parsed."""
    big = bundles.linear(np.ones((4, 2_000_000), np.float32))
    spec = TensorSpec(name="y", datatype="FP32", shape=(-1, 2_000_000))
    members = {**bundles.members(), "artifact/model.onnx": ("artifact", big)}
    runs = bundles.vectors(1)
    outputs = [{"y": np.maximum(run["x"].sum() + np.zeros((1, 2_000_000)), 0)}
               for run in runs]  # fmt: skip
    outputs = [{"y": run["y"].astype(np.float32)} for run in outputs]
    golden = bundles.write_golden(runs, outputs, {"y": (1e-4, 1e-4)})
    members["golden.npz"] = ("golden", golden)
    path = write(pack(bundles.manifest(outputs=(spec,)), members))
    del big, members, golden, outputs
    discard(load(path, state, SANDBOX))
    process = psutil.Process()
    before = process.memory_info().rss
    for _ in range(3):
        discard(load(path, state, SANDBOX))
    assert process.memory_info().rss - before < 8 << 20


def test_another_runtime(write: Callable[..., Path], state: Path) -> None:
    spec = RuntimeSpec(name="openvino", min_version="2024.0")
    loaded = load(write(bundles.bundle(runtime=spec)), state, SANDBOX)
    np.testing.assert_allclose(loaded.session.predict(X)["y"], Y, rtol=1e-5)
    discard(loaded)
    assert folders(state) == []
