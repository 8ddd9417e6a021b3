"""The lock: everything is pinned, and what is pinned is what hosts use."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from edgeml import armv7
from edgeml.emulator.lock import lock
from targets.profile import load_target, target_names

PARTS = [*lock().qemu.values(), *lock().guests.values()]
ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_package_has_its_digest(part):
    for one in (*part.debs, *part.wheels):
        assert re.fullmatch(r"[0-9a-f]{64}", one.sha256), one
        assert one.version and one.size > 0
    assert all(one.path.startswith("pool/main/") for one in part.debs)


def test_every_arm_target_has_a_guest():
    arches = {load_target(name).arch for name in target_names()}
    assert arches - {"x86_64"} == set(lock().guests)


def test_qemu_is_one_that_shows_arm_processors_as_they_are():
    for part in lock().qemu.values():
        assert int(part.version("qemu-user").partition(":")[2].partition(".")[0]) >= 10


def test_guests_run_what_hosts_build_with():
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    guest = lock().guests["aarch64"]
    for name in ("onnxruntime", "ai-edge-litert", "numpy", "pydantic"):
        assert guest.version(name) == pinned[name]
    release = armv7.RELEASE.split()[1]
    assert lock().guests["armv7l"].version("tflite-runtime") == release


def test_another_content_is_another_folder():
    part = PARTS[-1]
    other = replace(part, wheels=part.wheels[1:])
    assert other.folder != part.folder
    assert part.folder.startswith(f"{part.name}-")
    assert part.version("nothing") == ""
