"""Logs of writes, read and replayed without a machine."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from blocklogs import DISCARD, FLUSH, FUA, Entry, Recording, judge, read_log
from commands import Done
from machines import _newc, make_ext4

needs_e2fsprogs = pytest.mark.skipif(
    shutil.which("/sbin/debugfs") is None, reason="/sbin/debugfs is absent: e2fsprogs"
)
DONE = Done(0, "", "")


def log(*entries: tuple[int, int, int, bytes], magic: int = 0x6A736677736872) -> bytes:
    """Sector, number of sectors, flags, content."""
    raw = struct.pack("<QQQI", magic, 1, len(entries), 512).ljust(512, b"\0")
    for sector, sectors, flags, data in entries:
        raw += struct.pack("<QQQQ", sector, sectors, flags, 0).ljust(512, b"\0") + data
    return raw


def test_a_log_has_writes_flushes_and_discards(tmp_path: Path):
    path = tmp_path / "log"
    block = bytes(range(256)) * 4
    path.write_bytes(
        log((8, 2, 0, block), (0, 0, FLUSH, b""), (4, 9, DISCARD, b""),
            (3, 1, FUA, block[:512]))
    )  # fmt: skip
    assert read_log(path) == (
        Entry(4096, block, 0), Entry(0, b"", FLUSH), Entry(2048, b"", DISCARD),
        Entry(1536, block[:512], FUA),
    )  # fmt: skip


def test_another_file_is_no_log(tmp_path: Path):
    path = tmp_path / "log"
    path.write_bytes(log(magic=7))
    with pytest.raises(ValueError, match="expected a log of blklogwrites"):
        read_log(path)


@needs_e2fsprogs
class TestReplay:
    @pytest.fixture
    def disk(self, tmp_path: Path) -> Path:
        content = tmp_path / "content"
        content.mkdir()
        (content / "file").write_bytes(b"old")
        (content / "link").symlink_to("file")
        return make_ext4(tmp_path / "disk.img", 4 << 20, content).path

    @staticmethod
    def marks(disk: Path, *texts: bytes) -> tuple[Entry, ...]:
        last = disk.stat().st_size - 512
        return tuple(Entry(last, text.ljust(512), 0) for text in texts)

    def test_a_state_has_files_links_and_the_mark(self, disk, tmp_path):
        recording = Recording(disk, self.marks(disk, b"one"), tmp_path, DONE)
        before, after = [
            (one.mark, one.read("/file"), one.read("/none"), one.link("/link"))
            for one in recording.prefixes()
        ]
        assert before == ("", b"old", None, "file")
        assert after == ("one", b"old", None, "file")

    def test_a_big_write_is_also_cut_in_its_middle(self, disk, tmp_path):
        last = disk.stat().st_size - 512
        entries = (Entry(last - 7 * 512 - 4096, b"x" * 8192, 0), Entry(0, b"", FLUSH))
        recording = Recording(disk, entries, tmp_path, DONE)
        found = [(one.name, one.mark[:1]) for one in recording.prefixes()]
        assert found == [("0", ""), ("1 half", ""), ("1", "x")]

    def test_what_was_not_flushed_may_be_lost_and_the_rest_may_not(
        self, disk, tmp_path
    ):
        entries = (*self.marks(disk, b"kept"), Entry(0, b"", FLUSH))
        entries += self.marks(disk, b"perhaps")
        recording = Recording(disk, entries, tmp_path, DONE)
        found = {
            (one.name.split()[0], one.mark) for one in recording.torn(30) if one.mark
        }
        assert found >= {("3", "kept"), ("3", "perhaps"), ("2", "kept")}
        assert ("2", "perhaps") not in found

    def test_a_random_cut_repeats(self, disk, tmp_path):
        recording = Recording(
            disk, self.marks(disk, *(b"%d" % n for n in range(9))), tmp_path, DONE
        )
        first, second = (
            [(one.name, one.mark) for one in recording.torn(9, seed=3)] for _ in "12"
        )
        assert first == second

    def test_the_disk_itself_is_left_alone(self, disk, tmp_path):
        before = disk.read_bytes()
        recording = Recording(disk, self.marks(disk, b"one"), tmp_path, DONE)
        judge(recording.prefixes(), lambda state: None)
        assert disk.read_bytes() == before

    def test_a_verdict_names_the_bad_states(self, disk, tmp_path):
        recording = Recording(disk, self.marks(disk, b"one", b"two"), tmp_path, DONE)
        verdict = judge(
            recording.prefixes(), lambda one: "bad" if one.mark == "one" else None
        )
        assert (verdict.states, verdict.bad) == (3, {"1": "bad"})

    def test_a_file_system_that_cannot_be_recovered_is_an_error(self, disk, tmp_path):
        broken = Recording(disk, (Entry(1024, bytes(1024), 0),), tmp_path, DONE)
        with pytest.raises(RuntimeError, match="state 1: e2fsck"):
            list(broken.prefixes())


def test_an_initrd_is_what_cpio_reads(tmp_path: Path):
    if shutil.which("cpio") is None:
        pytest.skip("cpio is absent")
    raw = _newc({"init": b"#!", "bin/busybox": b"\x7fELF"})
    done = subprocess.run(["cpio", "-t"], input=raw, capture_output=True, check=True)
    assert set(done.stdout.decode().split()) == {
        "bin", "dev", "dev/console", "init", "bin/busybox",
    }  # fmt: skip
