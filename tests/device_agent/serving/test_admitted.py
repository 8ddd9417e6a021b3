"""What passed here before counts here only."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from device_agent.serving.admitted import RECORDS_MAX, Ground, admit, is_admitted

GROUND = Ground("box, 2 cores", "onnxruntime", "1.31.1", 1, 1 << 30, 60, 60.0)
DIGEST = "a" * 64


def test_it_is_remembered(tmp_path: Path) -> None:
    assert not is_admitted(tmp_path, DIGEST, GROUND)
    admit(tmp_path, DIGEST, GROUND)
    admit(tmp_path, DIGEST, GROUND)
    assert is_admitted(tmp_path, DIGEST, GROUND)
    assert not is_admitted(tmp_path, "b" * 64, GROUND)


@pytest.mark.parametrize(
    "other",
    [
        replace(GROUND, machine="another"),
        replace(GROUND, runtime_version="1.32.0"),
        replace(GROUND, protocol=2),
        replace(GROUND, memory_bytes=1 << 29),
        replace(GROUND, wall_s=1.0),
    ],
)
def test_other_ground(tmp_path: Path, other: Ground) -> None:
    admit(tmp_path, DIGEST, GROUND)
    assert not is_admitted(tmp_path, DIGEST, other)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 4000, b"{}" + bytes(9999)]
)
def test_a_damaged_record(tmp_path: Path, raw: bytes) -> None:
    admit(tmp_path, DIGEST, GROUND)
    path = tmp_path / "admitted" / f"{DIGEST}.json"
    path.write_bytes(raw)
    assert not is_admitted(tmp_path, DIGEST, GROUND)
    path.unlink()
    path.mkdir()
    assert not is_admitted(tmp_path, DIGEST, GROUND)


def test_a_record_of_another_bundle(tmp_path: Path) -> None:
    admit(tmp_path, DIGEST, GROUND)
    folder = tmp_path / "admitted"
    (folder / f"{DIGEST}.json").rename(folder / f"{'b' * 64}.json")
    assert not is_admitted(tmp_path, "b" * 64, GROUND)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "admitted"
    for number in range(RECORDS_MAX + 5):
        admit(tmp_path, f"{number:064x}", GROUND)
        os.utime(folder / f"{number:064x}.json", ns=(number, number))
    (folder / ".half-written").write_bytes(b"{")
    admit(tmp_path, DIGEST, GROUND)
    names = {path.name for path in folder.iterdir()}
    assert len(names) == RECORDS_MAX
    assert f"{DIGEST}.json" in names
    assert f"{0:064x}.json" not in names


def test_a_state_directory_that_cannot_be_written(tmp_path: Path) -> None:
    state = tmp_path / "file"
    state.write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        admit(state, DIGEST, GROUND)
    assert not is_admitted(state, DIGEST, GROUND)
