"""A network that plain int8 breaks: what ships holds the budget, or nothing ships."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hardnet
import numpy as np
import pytest
from commands import Done, edgeml

pytestmark = pytest.mark.long

TARGET = "cpu-x86_64"
DROP = 0.01
RECIPE = """\
[model]
source = "model.onnx"
name = "{name}"
version = "1.0.0"

[data]
calibration = {{ path = "calibration.npz", inputs = "x" }}
validation = {{ path = "validation.npz", inputs = "x", label = "y" }}
sampler = "random"
samples = 100

[metric]
name = "top1"

[budget]
max_accuracy_drop = {drop}
{budget}
[quantize]
quantizers = ["ort"]
methods = ["minmax", "percentile"]
precisions = ["int8", "mixed"]
mixed = {mixed}

[build]
targets = ["{target}"]
"""
SMALLER_THAN_FLOAT = "max_size_bytes = 100000\n"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The network, wide enough for int8 to be smaller, and its data."""
    folder = tmp_path_factory.mktemp("hardnet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardnet, "CHANNELS", 96)
        net = hardnet.hardnet()
    (folder / "model.onnx").write_bytes(net.model.SerializeToString())
    seen = np.concatenate([feed["x"] for feed in net.calibration])
    held = np.concatenate([feed["x"] for feed in net.validation])
    np.savez(folder / "calibration.npz", x=seen)
    np.savez(folder / "validation.npz", x=held, y=net.labels)
    yield folder


def built(
    work: Path, name: str, *, budget: str = "", mixed: bool = True
) -> tuple[Done, Path, dict[str, Any]]:
    """The command's end, the release's folder, and the target's part of the report."""
    path = work / f"{name}.toml"
    path.write_text(
        RECIPE.format(
            name=name, drop=DROP, budget=budget, mixed=str(mixed).lower(), target=TARGET
        )
    )
    done = edgeml("build", path, "--out", work / "build", cache=work / "cache")
    folder = work / "build" / f"{name}-1.0.0"
    report = json.loads((folder / "report.json").read_text())
    return done, folder, report["targets"][0]


@pytest.fixture(scope="module")
def free(work: Path) -> tuple[Done, Path, dict[str, Any]]:
    return built(work, "free")


def drops(target: dict[str, Any], oracle: float) -> dict[str, float]:
    """Evaluated candidate → points of top-1 that it loses."""
    return {
        one["name"]: oracle - one["evaluation"]["metrics"]["top1"]
        for one in target["candidates"]
        if one["evaluation"] is not None
    }


def test_plain_int8_breaks_it_and_is_not_shipped(
    free: tuple[Done, Path, dict[str, Any]],
) -> None:
    done, folder, target = free
    assert done.code == 0, done.err
    oracle = json.loads((folder / "report.json").read_text())["oracle"]
    lost = drops(target, oracle["metrics"]["top1"])
    plain = [one["name"] for one in target["candidates"] if one["precision"] == "int8"]
    tried = [name for name in plain if name in lost]
    assert tried
    assert min(lost[name] for name in tried) > 10 * DROP, "too easy to show anything"
    chosen = next(
        one for one in target["candidates"] if one["name"] == target["chosen"]
    )
    assert chosen["precision"] in ("fp32", "mixed")
    assert lost[chosen["name"]] <= DROP


def test_the_report_names_who_was_refused_and_the_guilty_layers(
    free: tuple[Done, Path, dict[str, Any]],
) -> None:
    _, _, target = free
    refused = {one["candidate"]: one["reason"] for one in target["refused"]}
    missed = {
        one["name"]: one["misses"] for one in target["candidates"] if one["misses"]
    }
    assert "int8 ort default" in missed
    for name, misses in missed.items():
        assert "max_accuracy_drop" in refused[name]
        for miss in misses:
            assert miss["guilty"]
            assert all(layer in refused[name] for layer in miss["guilty"])
    worst = missed["int8 ort default"][0]["guilty"]
    assert any(layer.startswith("dw") for layer in worst), worst


def test_a_rescue_was_found(free: tuple[Done, Path, dict[str, Any]]) -> None:
    """Layers put back to float make it as good again, whether it is fast or not."""
    _, _, target = free
    rescued = [
        one
        for one in target["candidates"]
        if one["precision"] == "mixed" and one["evaluation"] and not one["misses"]
    ]
    assert rescued
    for one in rescued:
        assert any(layer.startswith("dw") for layer in one["kept_layers"])
        assert one["status"] in ("chosen", "fits", "slower")


def recomputed(folder: Path, work: Path, name: str) -> float:
    """Top-1 of the bundle's artifact, by the bare runtime."""
    import onnxruntime

    out = work / f"unpacked-{name}"
    done = edgeml("unpack", folder / f"{TARGET}.edgeml", out, cache=work / "cache")
    assert done.code == 0, done.err
    manifest = json.loads((out / "manifest.json").read_text())
    settings = onnxruntime.SessionOptions()
    exact = manifest["runtime"]["options"].get("x64quantprecision", False)
    settings.add_session_config_entry("session.x64quantprecision", str(int(exact)))
    session = onnxruntime.InferenceSession(out / manifest["artifact"], settings)
    with np.load(work / "validation.npz") as held:
        images, labels = held["x"], held["y"]
    answers = [session.run(None, {"x": one[None]})[0].argmax() for one in images]
    return float(np.mean(np.array(answers) == labels))


def test_what_ships_is_within_the_budget_by_the_bare_runtime(
    free: tuple[Done, Path, dict[str, Any]], work: Path
) -> None:
    _, folder, _ = free
    oracle = json.loads((folder / "report.json").read_text())["oracle"]
    assert oracle["metrics"]["top1"] - recomputed(folder, work, "free") <= DROP


def test_where_float32_is_too_large_the_rescued_one_ships(work: Path) -> None:
    done, folder, target = built(work, "small", budget=SMALLER_THAN_FLOAT)
    assert done.code == 0, done.err
    chosen = next(
        one for one in target["candidates"] if one["name"] == target["chosen"]
    )
    assert chosen["precision"] == "mixed"
    assert chosen["size_bytes"] <= 100_000
    oracle = json.loads((folder / "report.json").read_text())["oracle"]
    assert oracle["metrics"]["top1"] - recomputed(folder, work, "small") <= DROP


def test_where_nothing_holds_nothing_ships(work: Path) -> None:
    done, folder, target = built(work, "none", budget=SMALLER_THAN_FLOAT, mixed=False)
    assert done.code == 3
    assert "Traceback" not in done.err
    assert TARGET in done.err.splitlines()[-1]
    assert target["chosen"] is None
    assert not list(folder.glob("*.edgeml"))
    status = {one["name"]: one["status"] for one in target["candidates"]}
    assert status["fp32"] == status["int8 ort default"] == "missed"
    assert not [one for one in target["candidates"] if one["precision"] == "mixed"]
    assert "no candidate holds the budget; nearest is" in target["choice_reason"]
