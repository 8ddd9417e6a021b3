"""ARM targets on this host: built, checked, run; and beside the official files.

The artifacts are portable, so LiteRT runs them here; the report says what did. Where
the emulator is (``edgeml emulator setup``), their targets check them, too.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("litert_torch", reason="litert-torch converts")
pytest.importorskip("ai_edge_quantizer")

import foreign
from commands import RECIPES, ROOT, edgeml, need

from calibration.dataset import DataSource, load
from device_agent.__main__ import main as agent
from device_agent.contract import machine
from device_agent.runtimes import runtime
from edgeml import armv7
from edgeml.graphs.lowering import lower
from edgeml.intake.importer import load_model

DIGITS = ROOT / "demo" / "digits"


def built(recipe: Path, folder: Path, *targets: str) -> dict[str, Any]:
    """The report of a build; every bundle passed the check, where there is one."""
    wanted = [part for target in targets for part in ("--target", target)]
    wanted += ["--check"] if foreign.lent(folder / "cache") else []
    done = edgeml("build", recipe, "--out", folder, *wanted, cache=folder / "cache")
    assert done.code == 0, done.out + done.err
    (path,) = folder.glob("*/report.json")
    report: dict[str, Any] = json.loads(path.read_text())
    return {"folder": path.parent, "out": done.out, **report}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The demo's network with weights of its first moment, built for two Pis' kinds."""
    folder = tmp_path_factory.mktemp("digits")
    for name in ("model.py", "recipe.toml", "train.py"):
        shutil.copy(DIGITS / name, folder)
    if (DIGITS / "weights.safetensors").is_file():
        shutil.copy(DIGITS / "weights.safetensors", folder)
    else:
        pytest.skip("demo/digits/train.py has not made its weights")
    with (folder / "recipe.toml").open("a") as recipe:
        recipe.write('\n[quantize]\nmethods = ["minmax"]\n')
    return built(folder / "recipe.toml", folder / "out", "rpi4", "armv7")


@pytest.mark.long
class TestDigits:
    """``edgeml build`` of the demo for ARM, on whatever this machine is."""

    def test_every_bundle_says_what_validated_it(self, digits: dict[str, Any]) -> None:
        if machine.arch() in ("aarch64", "armv7l"):
            pytest.skip("this machine is a device")
        here = f"{machine.arch()} by litert {runtime('litert').version()}"
        for target in digits["targets"]:
            assert target["validated_on"].startswith(here)
            bundle = digits["folder"] / target["bundle"]["file"]
            folder = digits["folder"] / target["target"]
            assert edgeml("unpack", bundle, folder, cache=folder).code == 0
            card = (folder / "card.md").read_text().replace("\\_", "_")
            assert f"validated on {here}" in card
            assert "not on the target's own device; latency measured there" in card
        assert armv7.RELEASE in digits["targets"][1]["validated_on"]

    def test_every_bundle_passed_its_targets_own_check(
        self, digits: dict[str, Any]
    ) -> None:
        if digits["targets"][0]["check"] is None:
            pytest.skip("no emulator (edgeml emulator setup makes it)")
        cpus = {"rpi4": "cortex-a72", "armv7": "cortex-a7"}
        for target in digits["targets"]:
            report = target["check"]
            assert report["ok"]
            assert report["argmax_flips"] == 0
            assert report["sha256"] == target["bundle"]["sha256"]
            assert report["emulation"]["cpu"] == cpus[target["target"]]
            page = (digits["folder"] / "report.html").read_text()
            assert f"check on {cpus[target['target']]} of qemu-user" in page

    def test_a_check_here_says_that_it_looked_elsewhere(
        self, digits: dict[str, Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        if machine.arch() == "aarch64":
            pytest.skip("this machine is a device")
        bundle = digits["folder"] / "rpi4.edgeml"
        done = edgeml("check", bundle, "--here", cache=digits["folder"])
        assert "it is for aarch64: its answers were checked here" in done.out
        assert agent(["check", str(bundle)]) == 3, "a device refuses it"
        assert "it is for aarch64" in capsys.readouterr().err

    def test_what_is_in_the_bundle_answers_right(self, digits: dict[str, Any]) -> None:
        """The manifest's own options, the runtime of the device."""
        for target in ("rpi4", "armv7"):
            folder = digits["folder"] / f"{target} unpacked"
            bundle = digits["folder"] / f"{target}.edgeml"
            assert edgeml("unpack", bundle, folder, cache=folder).code == 0
            manifest = json.loads((folder / "manifest.json").read_text())
            assert manifest["runtime"]["name"] == "litert"
            assert manifest["precision"] == "int8"
            assert manifest["inputs"][0]["datatype"] == "FP32"
            session = runtime("litert").load(
                folder / manifest["artifact"], manifest["runtime"]["options"]
            )
            golden = np.load(folder / "golden.npz")
            assert len(golden.files) > 16
            image = np.zeros((1, 1, 32, 32), np.float32)
            assert session.predict({"image": image})["output"].shape == (1, 10)
        assert manifest["runtime"]["min_version"] == "0.2.14"

    def test_int8_is_smaller_and_as_good(self, digits: dict[str, Any]) -> None:
        before = digits["oracle"]["metrics"]["top1"]
        for target in digits["targets"]:
            sizes = {
                one["precision"]: one["size_bytes"]
                for one in target["candidates"]
                if one["evaluation"]
            }
            assert sizes["int8"] < 0.3 * sizes["fp32"]
            assert sizes["fp16"] < 0.55 * sizes["fp32"]
            assert target["metrics"]["top1"]["value"] >= before - 0.01


def accuracy(session: Any, feeds: list[dict[str, Any]], labels: list[int]) -> float:
    """Share of right answers."""
    (output,) = session.outputs
    answers = [int(session.predict(feed)[output.name].argmax()) for feed in feeds]
    return float(np.mean(np.array(answers) == np.array(labels)))


@pytest.mark.long
def test_keyword_spotting_beside_the_official_int8_file(tmp_path: Path) -> None:
    """Int8 from the float weights loses less than a point, on 400 samples that
    calibration never saw; the official file's answers are counted on the same ones."""
    source = need("mlperf_tiny_kws")
    report = built(RECIPES / "mlperf_tiny_kws.toml", tmp_path, "rpi4")
    (target,) = report["targets"]
    before = report["oracle"]["metrics"]["top1"]
    judged = {
        one["name"]: one["evaluation"]["metrics"]["top1"]
        for one in target["candidates"]
        if one["evaluation"] and one["precision"] == "int8"
    }
    samples = load(DataSource("set:mlperf_tiny_kws/validation"), Path())
    labels = [int(sample.label) for sample in samples]
    raw = [np.asarray(sample.value, np.int8) for sample in samples]
    official = runtime("litert").load(source / "kws_ref_model.tflite", {})
    theirs = accuracy(
        official, [{"input_1": one.reshape(1, 49, 10, 1)} for one in raw], labels
    )
    print(f"float {before:.4f}, ours {judged}, the official int8 file {theirs:.4f}")
    assert len(samples) == 400
    assert max(judged.values()) >= before - 0.01
    assert target["metrics"]["top1"]["value"] >= before - 0.01
    assert target["metrics"]["top1"]["value"] > theirs - 0.01
    assert 0.85 < theirs < 0.95


@pytest.mark.long
def test_basic_pitch_says_what_the_official_file_says() -> None:
    """ONNX → LiteRT, beside the .tflite that its authors made of the same network."""
    source = need("basic_pitch")
    model = load_model("nmp.onnx", None, source, {})
    windows = load(DataSource("set:basic_pitch/validation"), Path())
    lowered = lower(model, [{model.inputs[0].name: _window(windows[0])}])
    assert lowered.error < 1e-4
    engine = runtime("litert")
    path = source / "nmp.tflite"
    assert len(lowered.raw) <= path.stat().st_size  # no table of mirrored places
    official = engine.load(path, {})
    names = dict(zip(("onset", "note", "contour"), "210", strict=True))
    for window in (windows[1], windows[9], windows[-1]):
        theirs = official.predict({official.inputs[0].name: _window(window)})
        ours = _predicted(lowered.raw, model.inputs[0].name, window)
        for name, number in names.items():
            found = ours[f"StatefulPartitionedCall:{number}"]
            assert np.abs(theirs[name] - found).max() < 1e-4, name


def _window(sample: Any) -> Any:
    return np.asarray(sample.value, np.float32).reshape(1, 43_844, 1)


def _predicted(raw: bytes, name: str, sample: Any) -> dict[str, Any]:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        path = Path(folder, "model.tflite")
        path.write_bytes(raw)
        session = runtime("litert").load(path, {})
        return session.predict({name: _window(sample)})
