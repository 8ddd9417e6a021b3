"""The image that scripts/image builds, under QEMU: what it holds, what it does."""

import json
import urllib.request
from pathlib import Path

import armbundles
import numpy as np
import pytest
import tritonclient.http as triton
from images import STATE, Image

pytestmark = pytest.mark.qemu
SIZE_BYTES_MAX = 250e6
OTHER = {"onnxruntime": "ai_edge_litert", "litert": "onnxruntime"}


@pytest.fixture(scope="module")
def folder(runtime: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bundles")
    made.joinpath("linear.edgeml").write_bytes(armbundles.bundle(runtime))
    made.chmod(0o755)  # the image's user reads it
    return made


def test_it_is_small(image: Image):
    assert image.size_bytes <= SIZE_BYTES_MAX


def test_it_runs_as_nobody_in_particular_and_says_how_it_is(image: Image, runtime):
    config = json.loads((armbundles.EXPORTS / runtime / "config.json").read_text())
    assert image.user == "10001:10001"
    assert list(config["Volumes"]) == [STATE]
    assert image.entrypoint == ("edgeml-agent",) and config["Cmd"] == ["run"]
    assert image.health == ("edgeml-agent", "status", "--quiet")
    assert "ORT_DISABLE_TELEMETRY=1" in image.environment


def test_it_holds_one_runtime_and_no_tools(image: Image, runtime):
    (site,) = image.root.glob("opt/edgeml-agent/lib/python3*/site-packages")
    held = {path.name for path in site.iterdir()}
    assert OTHER[runtime] not in held and "openvino" not in held
    assert not {"pip", "setuptools", "onnx", "torch"} & held
    tools = {"gcc", "cc", "ld", "apt", "apt-get", "perl", "pip", "pip3", "curl"}
    for bin_folder in ("usr/bin", "usr/local/bin", "opt/edgeml-agent/bin"):
        path = image.root / bin_folder
        assert not path.is_dir() or not tools & {one.name for one in path.iterdir()}


def test_no_file_in_it_is_anybodys_to_write_or_runs_as_its_owner(image: Image):
    files = [path for path in image.root.rglob("*") if path.is_file()]
    loose = [p for p in files if not p.is_symlink() and p.stat().st_mode & 0o6002]
    assert loose == []


def test_the_check_passes_in_it(image: Image, folder: Path):
    done = image.run(
        ["edgeml-agent", "check", "--json", "/bundles/linear.edgeml"],
        {"/bundles": folder},
    )
    assert done.code == 0, done.err
    assert done.facts["golden_vectors"] == 16 and done.facts["arch"] == "aarch64"
    assert done.facts["machine"].startswith("aarch64")


def test_the_check_finds_a_wrong_answer_in_it(image: Image, runtime, tmp_path: Path):
    raw = armbundles.bundle(runtime, wrong=True)
    tmp_path.joinpath("wrong.edgeml").write_bytes(raw)
    tmp_path.chmod(0o755)
    done = image.run(
        ["edgeml-agent", "check", "/bundles/wrong.edgeml"], {"/bundles": tmp_path}
    )
    assert done.code == 3, done.err
    assert "wrong.edgeml: golden:" in done.err


def test_its_root_cannot_be_written(image: Image):
    said = "import pathlib; pathlib.Path('/opt/edgeml-agent/x').write_text('')"
    assert "Read-only file system" in image.run(["python3", "-c", said]).err


def test_the_agent_serves_and_stops(
    image: Image, runtime, folder: Path, tmp_path: Path
):
    state, x = tmp_path / "state", armbundles.X[runtime]
    with image.serving(folder, state) as device:
        assert image.healthy(state).code == 0
        with triton.InferenceServerClient(device.address) as client:
            assert client.is_model_ready("linear")
            one = triton.InferInput("x", list(x.shape), "FP32")
            one.set_data_from_numpy(x)
            found = client.infer("linear", [one]).as_numpy("y")
        np.testing.assert_allclose(found, armbundles.answer(runtime, x), rtol=1e-5)
        with urllib.request.urlopen(f"{device.url}/metrics") as answer:
            assert b"linear" in answer.read()
        assert device.stop() == 0
    assert "stopping" in device.log()
    assert image.healthy(state).code == 5
