"""Power cuts: every state that a disk was in while a machine wrote to it.

::

    recording = record(machine, disk, work, ["python3", "writer.py"], root=root)
    verdict = judge(recording.prefixes(), checker)
    assert not verdict.bad

1. QEMU's ``blklogwrites`` driver keeps every write, flush and discard of a run, in the
   order in which the disk had them (the format of Linux' dm-log-writes).
2. A **prefix** is the disk after the first n of them: what a cut leaves of a disk that
   keeps the order. A **torn** state has everything up to the last flush, and of what
   came after it a random part: what a cut leaves of a disk with a cache.
3. Each state is recovered as mounting it would (e2fsck replays the journal), and then
   read with debugfs: nothing is mounted, no root, some 80 states a second.
4. What a job has promised by ``/run/mark`` is the state's ``mark``.

Killing a machine at random moments finds less: the kernel holds writes back for
seconds.
"""

import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from commands import Done
from machines import Drive, Machine

FLUSH, FUA, DISCARD, _MARK = 1, 2, 4, 8
BLOCK_BYTES = 4096
_MAGIC, _VERSION = 0x6A736677736872, 1
_SUPER, _ENTRY = struct.Struct("<QQQI"), struct.Struct("<QQQQ")


@dataclass(frozen=True)
class Entry:
    """One request: bytes for a place on the disk, or none of them."""

    offset: int
    data: bytes
    flags: int


@dataclass(frozen=True)
class State:
    """A disk after a cut, recovered; it is gone when the next one is asked for."""

    name: str
    disk: Path
    mark: str
    """What was promised; empty: nothing yet."""

    def read(self, path: str) -> bytes | None:
        """A file's content; None: there is no such file."""
        done = _debugfs(f'cat "{path}"', self.disk)
        return None if b"File not found" in done.stderr else done.stdout

    def link(self, path: str) -> str | None:
        """Where a symbolic link points; None: there is no such file."""
        said = _debugfs(f'stat "{path}"', self.disk).stdout.decode(errors="replace")
        _, found, rest = said.partition('Fast link dest: "')
        return rest.partition('"')[0] if found else None


Checker = Callable[[State], str | None]
"""Looks at a state: None where it is as it should be, else what is wrong."""


@dataclass(frozen=True)
class Verdict:
    """How many states there were, and what was wrong with which."""

    states: int
    bad: dict[str, str]


@dataclass(frozen=True)
class Recording:
    """A disk as it was before a run, and what was written to it since."""

    before: Path
    entries: tuple[Entry, ...]
    work: Path
    done: Done

    def prefixes(self) -> Iterator[State]:
        """The disk before the run and after each of its writes, in their order.

        A write of more than ``BLOCK_BYTES`` gives two: its first half, and all of it.
        """
        disk = self._copy(self.before, "replay.img")
        with disk.open("r+b") as file:
            yield self._recovered("0", disk)
            for number, entry in enumerate(self.entries, start=1):
                blocks = _blocks(entry)
                half = len(blocks) // 2
                if half:
                    _apply(file, blocks[:half])
                    yield self._recovered(f"{number} half", disk)
                if blocks:
                    _apply(file, blocks[half:])
                    yield self._recovered(str(number), disk)

    def torn(self, count: int, seed: int = 0) -> Iterator[State]:
        """Random cuts of a disk that has not kept the order since the last flush.

        Of every write since then each block of ``BLOCK_BYTES`` is there or is not.
        """
        chance = random.Random(seed)
        for number in range(count):
            cut = chance.randint(1, len(self.entries))
            flushed = max(
                (n for n, one in enumerate(self.entries[:cut], 1) if one.flags & FLUSH),
                default=0,
            )
            disk = self._copy(self.before, "replay.img")
            with disk.open("r+b") as file:
                for place, entry in enumerate(self.entries[:cut], start=1):
                    safe = place <= flushed or entry.flags & FUA
                    blocks = _blocks(entry)
                    _apply(file, [b for b in blocks if safe or chance.random() < 0.5])
            yield self._recovered(f"{cut} torn {number}", disk)

    def _recovered(self, name: str, disk: Path) -> State:
        copy = self._copy(disk, "state.img")
        with copy.open("rb") as file:
            file.seek(-512, 2)
            mark = file.read().rstrip(b"\0 ").decode()
        done = subprocess.run(
            ["/sbin/e2fsck", "-E", "journal_only", "-y", str(copy)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode > 1:  # 0: nothing to do, 1: done
            raise RuntimeError(f"state {name}: e2fsck: {done.stdout}{done.stderr}")
        return State(name, copy, mark)

    def _copy(self, source: Path, name: str) -> Path:
        made = self.work / name
        subprocess.run(["cp", "--sparse=always", source, made], check=True)
        return made


def record(
    machine: Machine, disk: Path, words: Sequence[str], **more: Any
) -> Recording:
    """Run a command with a disk at ``/mnt`` and keep what is written to it.

    Args:
        machine: its ``work`` folder gets the files; best on a tmpfs.
        disk: it changes as it would without all this.
        words: the command.
        more: further arguments of :meth:`Machine.run`.
    """
    before, log = machine.work / "before.img", machine.work / "writes.log"
    shutil.copyfile(disk, before)
    log.unlink(missing_ok=True)
    done = machine.run(words, data=Drive(disk, log=log), **more)
    return Recording(before, read_log(log), machine.work, done)


def read_log(path: Path) -> tuple[Entry, ...]:
    """What a ``blklogwrites`` log has.

    Raises:
        ValueError: the file is no such log.
    """
    with path.open("rb") as file:
        magic, version, count, size = _SUPER.unpack(file.read(_SUPER.size))
        if (magic, version) != (_MAGIC, _VERSION):
            raise ValueError(f"{path}: expected a log of blklogwrites, version 1")
        entries, place = [], size
        for _ in range(count):
            file.seek(place)
            sector, sectors, flags, _ = _ENTRY.unpack(file.read(_ENTRY.size))
            place += size
            data = b""
            if not flags & (DISCARD | _MARK) and sectors:
                file.seek(place)
                data = file.read(sectors * size)
                place += sectors * size
            entries.append(Entry(sector * size, data, flags))
    return tuple(entries)


def judge(states: Iterable[State], checker: Checker) -> Verdict:
    """Have a checker look at every state."""
    count, bad = 0, {}
    for state in states:
        count += 1
        wrong = checker(state)
        if wrong is not None:
            bad[state.name] = wrong
    return Verdict(count, bad)


def _blocks(entry: Entry) -> list[tuple[int, bytes]]:
    """Places and contents, in pieces. A discard has none: what was there may stay."""
    return [
        (entry.offset + start, entry.data[start : start + BLOCK_BYTES])
        for start in range(0, len(entry.data), BLOCK_BYTES)
    ]


def _apply(file: BinaryIO, blocks: Iterable[tuple[int, bytes]]) -> None:
    for place, content in blocks:
        file.seek(place)
        file.write(content)
    file.flush()


def _debugfs(request: str, disk: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["/sbin/debugfs", "-R", request, str(disk)], capture_output=True, check=True
    )
