"""What goes through the seam is whole or absent; errors say what the disk did."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from recording import Recording

from device_agent.contract.codes import Reason
from device_agent.durable import (
    REAL,
    Disk,
    File,
    StateLock,
    make_folder,
    move,
    opened,
    remove,
    replace,
    sweep,
    unfinished,
)  # fmt: skip
from device_agent.errors import LockedError, StorageError


class Failing(Disk):
    """A disk that fails one kind of effect, for as long as it is told to."""

    def __init__(self, effect: str, code: int) -> None:
        self.effect, self.code = effect, code

    def __getattribute__(self, name: str) -> object:
        if name == object.__getattribute__(self, "effect"):
            failing, name = True, name
        else:
            failing = False
        found = object.__getattribute__(self, name)
        if not failing:
            return found

        def fail(*_: object) -> None:
            reason = Reason.NO_SPACE if self.code == errno.ENOSPC else Reason.STORAGE
            raise StorageError(reason, f"{name}: {os.strerror(self.code)}")

        return fail


def test_replace_writes_beside_syncs_renames_and_syncs_the_folder(
    tmp_path: Path,
) -> None:
    disk, path = Recording(), tmp_path / "floors.json"
    path.write_bytes(b"old")
    replace(disk, path, b"new")
    assert path.read_bytes() == b"new"
    assert disk.done == [
        ("write", ".floors.json.new"), ("sync", ".floors.json.new"),
        ("rename", "floors.json"), ("sync_folder", tmp_path.name),
    ]  # fmt: skip
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("effect", ["create", "write", "sync", "rename"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_replace_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, effect: str, code: int
) -> None:
    path = tmp_path / "floors.json"
    replace(REAL, path, b"old")
    with pytest.raises(StorageError) as caught:
        replace(Failing(effect, code), path, b"new")
    expected = Reason.NO_SPACE if code == errno.ENOSPC else Reason.STORAGE
    assert caught.value.reason is expected
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["floors.json"]


def test_the_real_errors_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"open /dev/full/x") as caught:
        REAL.create(Path("/dev/full/x"))
    assert caught.value.reason is Reason.STORAGE
    file = File(Path("/dev/full"), os.open("/dev/full", os.O_WRONLY))
    with pytest.raises(StorageError, match="write to /dev/full") as full:
        REAL.write(file, b"x", 0)
    assert full.value.reason is Reason.NO_SPACE
    REAL.close(file)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "state.json"
    victim.write_bytes(b"kept")
    unfinished(path).symlink_to(victim)
    with pytest.raises(StorageError):
        replace(REAL, path, b"new")
    assert victim.read_bytes() == b"kept"


def test_a_write_goes_on_where_it_was_told(tmp_path: Path) -> None:
    path = tmp_path / "part"
    with opened(REAL, REAL.create(path)) as file:
        REAL.write(file, b"0123456789", 0)
        REAL.truncate(file, 4)
        REAL.write(file, b"ab", 4)
    with opened(REAL, REAL.resume(path)) as file:
        REAL.write(file, b"cd", 6)
        REAL.sync(file)
    assert path.read_bytes() == b"0123abcd"


def test_what_is_done_already_is_done_again_without_harm(tmp_path: Path) -> None:
    old, new = tmp_path / "a", tmp_path / "b"
    replace(REAL, old, b"data")
    for _ in range(2):
        move(REAL, old, new)
        assert new.read_bytes() == b"data"
        assert not old.exists()
    with pytest.raises(StorageError):
        move(REAL, old, tmp_path / "c")
    for _ in range(2):
        remove(REAL, new)
        assert not new.exists()
    for _ in range(2):
        make_folder(REAL, tmp_path / "slots")
        assert (tmp_path / "slots").is_dir()


def test_what_was_cut_off_is_made_durable_when_it_is_found_done(tmp_path: Path) -> None:
    disk, folder = Recording(), tmp_path / "slots"
    folder.mkdir()  # by a process that was cut off before it synced
    make_folder(disk, folder)
    remove(disk, folder / "gone")
    assert disk.done == [("sync_folder", tmp_path.name), ("sync_folder", "slots")]


def test_sweep_takes_what_was_never_finished_and_no_more(tmp_path: Path) -> None:
    replace(REAL, tmp_path / "kept", b"1")
    unfinished(tmp_path / "kept").write_bytes(b"half")
    (tmp_path / "also.new").write_bytes(b"2")
    assert sweep(REAL, tmp_path) == 1
    assert sorted(one.name for one in tmp_path.iterdir()) == ["also.new", "kept"]


def test_one_process_per_state_directory(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from device_agent.durable import StateLock\n"
        "from device_agent.errors import LockedError\n"
        "try:\n    StateLock(Path(sys.argv[1]))\n"
        "except LockedError as error:\n    print(error)\n"
        "else:\n    print('taken')\n"
    )

    def another() -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.strip()

    with StateLock(tmp_path):
        assert f"in use by process {os.getpid()}" in another()
        with pytest.raises(LockedError):
            StateLock(tmp_path)
    assert another() == "taken"
    StateLock(tmp_path).release()


def test_a_full_disk_does_not_keep_it_from_its_lock(tmp_path: Path) -> None:
    code = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from device_agent.durable import StateLock\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "StateLock(Path(sys.argv[1]))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert (tmp_path / "lock").read_bytes() == b""
