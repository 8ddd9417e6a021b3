"""A recipe with the pass ``qat``: the build trains what int8 broke, for each target."""

import json
from pathlib import Path
from typing import Any

import hardnet
import numpy as np
import pytest
from commands import edgeml
from sklearn.datasets import load_digits

pytestmark = pytest.mark.long
pytest.importorskip("torch")

RECIPE = """\
[model]
source = "model.onnx"
name = "hard"
version = "1.0.0"

[data]
calibration = { path = "calibration.npz", inputs = "x" }
validation = { path = "validation.npz", inputs = "x", label = "y" }
train = { path = "train.npz", inputs = "x", label = "y" }
samples = 100

[metric]
name = "top1"

[quantize]
quantizers = QUANTIZERS
methods = ["minmax"]
precisions = ["int8"]
mixed = false

[[pass]]
verb = "qat"
epochs = 10
batch = 48
learning_rate = 1e-2
scheme = "SCHEME"

[build]
targets = ["TARGET"]
"""


OURS = ("ort", "nncf")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qat")
    net, digits = hardnet.hardnet(), load_digits()
    (folder / "model.onnx").write_bytes(net.model.SerializeToString())
    images = (digits.images[:, None] / 16).astype(np.float32)
    train = np.random.default_rng(0).permutation(len(images))[:1200]  # its own split
    held = np.concatenate([feed["x"] for feed in net.validation])
    np.savez(folder / "calibration.npz", x=images[train[:100]])
    np.savez(folder / "train.npz", x=images[train], y=digits.target[train])
    # what is in the set twice must not be trained on
    new = [place for place, one in enumerate(held)
           if not (images[train] == one).all((1, 2, 3)).any()]  # fmt: skip
    np.savez(folder / "validation.npz", x=held[new], y=net.labels[new])
    return folder


def candidates(
    work: Path, target: str, scheme: str = "auto", quantizers: tuple[str, ...] = OURS
) -> dict[str, Any]:
    """Name → what the report says of each candidate."""
    recipe = work / f"{target}.toml"
    text = RECIPE.replace("TARGET", target).replace("SCHEME", scheme)
    text = text.replace("QUANTIZERS", json.dumps(quantizers))
    recipe.write_text(text)
    done = edgeml("build", recipe, "--out", work / target, cache=work / "cache")
    report = json.loads((work / target / "hard-1.0.0" / "report.json").read_text())
    assert "training int8 qat" in done.err + done.out, done.err
    return {one["name"]: one for one in report["targets"][0]["candidates"]}


def top1(candidate: dict[str, Any]) -> float:
    return float(candidate["evaluation"]["metrics"]["top1"])


def test_what_is_trained_is_one_more_candidate_for_onnx_runtime(work: Path) -> None:
    found = candidates(work, "cpu-x86_64")
    (name,) = [one for one in found if "qat" in one]
    base = found[found[name]["parameters"]["from"]]
    assert top1(base) == max(
        top1(one)
        for one in found.values()
        if one["precision"] == "int8" and one["evaluation"] and one["name"] != name
    )
    assert top1(found[name]) >= top1(base) - 0.01
    assert found[name]["parameters"]["epochs_run"] == 10
    assert found[name]["artifact_sha256"] != base["artifact_sha256"]


def test_openvino_gets_the_same_from_its_own_quantizer(work: Path) -> None:
    found = candidates(work, "openvino-cpu")
    (name,) = [one for one in found if "qat" in one]
    assert name.startswith("int8 qat (from nncf")
    assert top1(found[name]) >= top1(found["fp32"]) - 0.05


def test_arm_targets_get_it_in_the_scheme_of_litert(work: Path) -> None:
    pytest.importorskip("litert_torch")
    pytest.importorskip("ai_edge_quantizer")
    found = candidates(work, "rpi4", quantizers=("aeq",))
    (name,) = [one for one in found if "qat" in one]
    base = found[found[name]["parameters"]["from"]]
    assert name == "int8 qat (from aeq minmax)"
    assert base["status"] == "skipped", "so broken that nobody judged it"
    assert base["proxy_sqnr_db"] < 0
    assert found[name]["proxy_sqnr_db"] > base["proxy_sqnr_db"] + 3
    assert top1(found[name]) > 0.7
