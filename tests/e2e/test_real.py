"""Real models on real data, each recipe built for both runtimes and checked.

Keyword spotting runs by default; the others take half a minute to two minutes each
(``scripts/test slow``).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import RECIPES, edgeml, need

SLOW = pytest.mark.slow


def built(name: str, folder: Path, *targets: str) -> dict[str, Any]:
    """The report of a build of ``recipes/<name>.toml``; its bundles pass the check."""
    need(name)
    wanted = [part for target in targets for part in ("--target", target)]
    done = edgeml(
        "build", RECIPES / f"{name}.toml", "--out", folder, "--check", *wanted,
        cache=folder / "cache",
    )  # fmt: skip
    assert done.code == 0, done.out + done.err
    (report,) = folder.glob("*/report.json")
    found: dict[str, Any] = json.loads(report.read_text())
    assert {one["target"] for one in found["targets"]} >= set(targets)
    return found


def int8(target: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        one
        for one in target["candidates"]
        if one["precision"] == "int8" and one["evaluation"]
    ]


@pytest.mark.long
def test_keyword_spotting_keeps_its_accuracy_in_int8(tmp_path: Path) -> None:
    report = built("mlperf_tiny_kws", tmp_path, "cpu-x86_64", "openvino-cpu")
    before = report["oracle"]["metrics"]["top1"]
    assert before == pytest.approx(0.9125)
    for target in report["targets"]:
        now = target["metrics"]["top1"]["value"]
        assert now >= before - 0.01
        best = max(one["evaluation"]["metrics"]["top1"] for one in int8(target))
        assert best >= 0.90


@SLOW
def test_mnist_stays_within_a_fifth_of_a_point(tmp_path: Path) -> None:
    report = built("mnist", tmp_path, "cpu-x86_64", "openvino-cpu")
    assert report["oracle"]["metrics"]["top1"] == pytest.approx(0.9891)
    for target in report["targets"]:
        assert target["metrics"]["top1"]["value"] >= 0.9891 - 0.002


@SLOW
def test_a_network_trained_in_the_recipe_holds_every_period(tmp_path: Path) -> None:
    report = built("occupancy", tmp_path, "cpu-x86_64", "openvino-cpu")
    before = report["oracle"]
    assert before["metrics"]["top1"] >= 0.98
    for target in report["targets"]:
        for period, score in target["slices"]["period"].items():
            value = score["value"] if isinstance(score, dict) else score
            assert value >= 0.96, period


@SLOW
@pytest.mark.parametrize("name", ["ultraface", "basic_pitch"])
def test_models_without_labels_agree_with_float(name: str, tmp_path: Path) -> None:
    report = built(name, tmp_path, "cpu-x86_64", "openvino-cpu")
    limit = report["budget"]["max_accuracy_drop"]
    for target in report["targets"]:
        (found,) = target["metrics"].values()
        assert found["value"] >= 1 - limit


@SLOW
def test_a_stateful_model_still_hears_speech_when_its_own_state_is_fed_back(
    tmp_path: Path,
) -> None:
    """70.5 % of the first 624 frames are speech: the figure its authors' files give."""
    from calibration.dataset import DataSource, load
    from device_agent.runtimes import runtime

    report = built("silero_vad", tmp_path, "cpu-x86_64", "openvino-cpu")
    samples = load(DataSource("set:silero_vad/validation_16k"), Path())
    for target in report["targets"]:
        bundle = tmp_path / "silero-vad-5.0.0" / target["bundle"]["file"]
        folder = tmp_path / target["target"]
        assert edgeml("unpack", bundle, folder, cache=tmp_path).code == 0
        manifest = json.loads((folder / "manifest.json").read_text())
        session = runtime(manifest["runtime"]["name"]).load(
            folder / manifest["artifact"], manifest["runtime"]["options"]
        )
        state, speech = np.zeros((2, 1, 128), np.float32), []
        for sample in samples[:624]:
            frame = np.asarray(sample.value["input"])
            answer = session.predict({"input": frame, "state": state})
            state = answer["stateN"].reshape(2, 1, 128)
            speech.append(float(answer["output"].ravel()[0]) > 0.5)
        assert np.mean(speech) == pytest.approx(0.705, abs=0.02)
