"""The check in an image, by the command line that podman and docker share."""

import os
from dataclasses import replace
from pathlib import Path

import engines
import foreign
import numpy as np
import pytest

from device_agent.contract import machine
from device_agent.contract.bundle import read_bundle
from device_agent.contract.manifest import Isa
from edgeml.emulator.check import Emulation, check, plan
from edgeml.emulator.engine import Engine
from edgeml.errors import MachineLacks, UsageError
from targets.profile import Target, load_target

IMAGE = "localhost/edgeml-agent:here"
HERE = replace(load_target("reference"), arch=machine.arch(), qemu_cpu="max")


@pytest.fixture
def podman(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    folder = tmp_path / "bin"
    folder.mkdir()
    engines.engine(folder)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return Engine("podman", IMAGE)


def checked(path: Path, engine: Engine, target: Target = HERE):
    emulation = Emulation(target, "max", 60.0, engine)
    return check(path, emulation, foreign.anywhere(path.parent), lambda line: None)


def bundle(folder: Path, **changes) -> Path:
    return foreign.linear(
        folder, isa=Isa(arch=machine.arch()), target=HERE.name, **changes
    )


def test_what_the_device_says_in_the_image_is_the_verdict(tmp_path, podman):
    report = checked(bundle(tmp_path), podman)
    assert report["ok"] and report["exit_code"] == 0
    assert report["emulation"]["engine"] == "podman 4.3.1"
    assert report["emulation"]["image"] == IMAGE
    assert report["peak_memory_bytes"] > 0 and not report["emulation"]["memory_exact"]


def test_a_wrong_answer_is_found_there(tmp_path, podman):
    report = checked(bundle(tmp_path, golden=np.full((4, 3), 9.0, np.float32)), podman)
    assert (report["exit_code"], report["failure"]["step"]) == (3, "golden")


def test_who_takes_more_than_the_target_has_is_ended(tmp_path, podman):
    report = checked(bundle(tmp_path), podman, replace(HERE, memory_bytes=32 << 20))
    assert (report["exit_code"], report["failure"]["step"]) == (3, "memory")


def test_an_image_that_is_not_there_is_told(tmp_path, podman):
    with pytest.raises(MachineLacks, match="no such image localhost/other"):
        checked(bundle(tmp_path), replace(podman, image="localhost/other:1"))


def test_an_engine_that_is_not_here_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineLacks, match="docker is not installed"):
        checked(bundle(tmp_path), Engine("docker", IMAGE))


def test_only_for_arm64_is_there_an_image_of_ours():
    assert Engine("podman").image_for("aarch64", "litert").endswith("arm64-litert")
    with pytest.raises(UsageError, match="--image names one"):
        Engine("podman").image_for("armv7l", "litert")


def test_it_is_asked_for_this_architecture_too(tmp_path, podman):
    path = bundle(tmp_path)
    found = plan(read_bundle(path), None, None, HERE, 1.0, podman)
    assert found == Emulation(HERE, "max", 1.0, podman)
