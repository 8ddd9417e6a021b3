"""The main job on a small real problem, as a user sees it."""

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
from commands import ROOT, edgeml
from digits import recipe, write

TARGETS = ("cpu-x86_64", "openvino-cpu")
FEW = '[quantize]\nmethods = ["minmax"]\n'
"""Candidates enough for a choice; all of them are made in ``test_real.py``."""
pytestmark = pytest.mark.long  # the one build of all targets takes 16 s


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    write(folder)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def built(work: Path, cache: Path) -> Path:
    path = recipe(work, *TARGETS, extra=FEW)
    done = edgeml("build", path, "--out", work / "build", cache=cache)
    assert done.code == 0, done.err
    return work / "build" / "digits-1.0.0"


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("*.edgeml"))
    }


def test_every_target_has_a_bundle_that_passes_the_devices_check(
    built: Path, cache: Path
) -> None:
    for target in TARGETS:
        done = edgeml("check", built / f"{target}.edgeml", "--json", cache=cache)
        assert done.code == 0, done.out + done.err
        assert done.facts["golden_vectors"] >= 16


def test_figures_can_be_recomputed_from_the_unpacked_bundle_with_the_bare_runtime(
    built: Path, work: Path, cache: Path, tmp_path: Path
) -> None:
    import onnxruntime

    report = json.loads((built / "report.json").read_text())
    folder = tmp_path / "unpacked"
    done = edgeml("unpack", built / "cpu-x86_64.edgeml", folder, cache=cache)
    assert done.code == 0, done.err
    manifest = json.loads((folder / "manifest.json").read_text())
    session = onnxruntime.InferenceSession(folder / manifest["artifact"])
    with np.load(work / "held.npz") as held:
        images, labels = held["x"], held["y"]
    answers = [session.run(None, {"image": one[None]})[0].argmax() for one in images]
    top1 = float(np.mean(np.array(answers) == labels))
    assert manifest["metrics"]["accuracy"]["value"] == pytest.approx(top1)
    target = next(one for one in report["targets"] if one["target"] == "cpu-x86_64")
    assert target["metrics"]["top1"]["value"] == pytest.approx(top1)


def test_an_unchanged_build_does_nothing(built: Path, work: Path, cache: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in built.iterdir()}
    done = edgeml("build", work / "recipe.toml", "--out", work / "build", cache=cache)
    assert done.code == 0
    assert "nothing changed" in done.err
    assert {path: path.stat().st_mtime_ns for path in built.iterdir()} == before


@pytest.mark.long
def test_two_fresh_folders_give_the_same_bytes(
    built: Path, work: Path, cache: Path, tmp_path: Path
) -> None:
    done = edgeml("build", work / "recipe.toml", "--out", tmp_path, cache=cache)
    assert done.code == 0, done.err
    assert digests(tmp_path / "digits-1.0.0") == digests(built)


def test_json_is_all_there_is_on_standard_output(
    built: Path, work: Path, cache: Path
) -> None:
    done = edgeml(
        "build", work / "recipe.toml", "--out", work / "build", "--json", cache=cache
    )
    assert {one["target"] for one in done.facts["targets"]} == set(TARGETS)


@pytest.mark.long
def test_a_budget_that_cannot_be_held_exits_3_names_the_limit_and_builds_the_others(
    work: Path, cache: Path, tmp_path: Path
) -> None:
    write(tmp_path)
    path = recipe(tmp_path, "cpu-x86_64", extra="[budget]\nmax_size_bytes = 100\n")
    done = edgeml("build", path, "--out", tmp_path / "build", cache=cache)
    assert done.code == 3
    assert "max_size_bytes" in done.out
    assert not list((tmp_path / "build" / "digits-1.0.0").glob("*.edgeml"))
    assert (tmp_path / "build" / "digits-1.0.0" / "report.html").exists()


def test_a_target_that_this_machine_lacks_is_refused_by_reason(
    work: Path, cache: Path, tmp_path: Path
) -> None:
    done = edgeml(
        "build", work / "recipe.toml", "--target", "openvino-igpu",
        "--out", tmp_path, cache=cache,
    )  # fmt: skip
    assert done.code == 4
    assert "OpenVINO finds none" in done.out


STAGES = (
    "reading the model", "preparing samples", "float32 oracle", "making fp32",
    "judging fp32", "making int8 ort minmax", "judging int8", "packing",
)  # fmt: skip
"""Stages whose turn is in the default run."""


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_a_build_killed_in_any_stage_goes_on_and_gives_the_same_bytes(
    stage: str, built: Path, work: Path, cache: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable, "-m", "edgeml", "build", str(work / "recipe.toml"),
        "--target", "cpu-x86_64", "--out", str(tmp_path),
    ]  # fmt: skip
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    build = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert build.stderr is not None
    for line in build.stderr:
        if line.startswith("…") and stage in line:
            time.sleep(0.02)  # into the stage, not only to its door
            build.send_signal(signal.SIGKILL)
            break
    assert build.wait() == -signal.SIGKILL, f"stage {stage!r} was not seen"
    build.stderr.close()
    assert not list(tmp_path.glob("digits-1.0.0/*.edgeml"))
    done = edgeml(*command[3:], cache=cache)
    assert done.code == 0, done.err
    name = "cpu-x86_64.edgeml"
    assert digests(tmp_path / "digits-1.0.0")[name] == digests(built)[name]
    assert not [path for path in tmp_path.rglob(".*.part") if path.is_file()]
