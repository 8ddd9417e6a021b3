"""Run folders live as long as their process."""

import subprocess
import sys
from pathlib import Path

import pytest

from device_agent.serving import folders
from device_agent.serving.folders import RunFolder, sweep

LEAVE_ONE = """
import os, sys
from pathlib import Path
from device_agent.serving.folders import RunFolder
folder = RunFolder(Path(sys.argv[1]))
(folder.path / "artifact").write_bytes(b"x" * 1000)
os._exit(1)
"""


def test_in_use_it_stays(tmp_path: Path) -> None:
    used, done = RunFolder(tmp_path), RunFolder(tmp_path)
    (used.path / "file").write_bytes(b"1")
    done.remove()
    done.remove()
    assert sweep(tmp_path) == 0
    assert (used.path / "file").read_bytes() == b"1"
    assert list((tmp_path / "run").iterdir()) == [used.path]
    used.remove()


def test_what_a_dead_process_left_is_removed(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", LEAVE_ONE, tmp_path], check=False)
    (tmp_path / "run" / "stray").write_bytes(b"1")
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "run" / "link").symlink_to(outside)
    used = RunFolder(tmp_path)
    assert sweep(tmp_path) == 1
    assert list((tmp_path / "run").iterdir()) == [used.path]
    assert outside.is_dir()
    used.remove()


def test_nothing_there(tmp_path: Path) -> None:
    assert sweep(tmp_path / "never") == 0


def test_in_memory_it_is_swept_too_and_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "MEMORY", tmp_path / "memory")
    kept = RunFolder(tmp_path, in_memory=True)
    parent = kept.path.parent
    assert parent.parent == tmp_path / "memory"
    (parent / "stray").mkdir()
    assert sweep(tmp_path) == 1
    kept.remove()
    assert sweep(tmp_path) == 0
    assert not parent.exists()
    outside = tmp_path / "outside"
    (outside / "file").mkdir(parents=True)
    parent.symlink_to(outside)  # somebody else's, made first
    assert sweep(tmp_path) == 0
    assert (outside / "file").is_dir()
    with pytest.raises(PermissionError):
        RunFolder(tmp_path, in_memory=True)
