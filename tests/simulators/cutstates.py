"""What may lie on a disk after the power was cut, by POSIX and not by luck.

A run of a flow is recorded at the seam. For each cut, states are drawn from all that
may be there:

1. Data that was not synced is absent, there, or torn: any of its sectors may be
   missing, and where a file grew without them, they read as zeros.
2. Names that were not synced (create, rename, unlink, mkdir) are there or not, each for
   itself and in any order with others; a rename within a folder is one thing.
3. A commit of SQLite is there when it returned and ``synchronous`` was FULL; with less,
   any state since the last one that was. One that was under way is there or not.
4. What was synced is there, and what was said (an acknowledgement) was heard.

A database is one file here: its log is SQLite's own affair (``killing`` looks at it).
"""

import hashlib
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from faultflows import Campaign, is_database, judged, load, scratch

from device_agent.durable import Disk, File

SECTOR: Final = 512
FOLDER: Final = -1
"""In place of the number of a file."""

Write = tuple[int, bytes]
"""Offset and data; an offset of -1: cut to the length of the number in data."""
Group = tuple[tuple[Path, int | None], ...]
"""Names that change together: to which file, or to none."""


@dataclass
class Inode:
    """One file: what is durable, and what came since."""

    durable: bytes = b""
    pending: list[Write] = field(default_factory=list)
    versions: list[bytes] = field(default_factory=list)
    """Of a database, instead: the last durable one, and every later one."""


@dataclass
class Image:
    """A disk: what is durable, and what is not."""

    inodes: dict[int, Inode] = field(default_factory=dict)
    durable: dict[Path, int] = field(default_factory=dict)
    pending: list[Group] = field(default_factory=list)


Step = Callable[[Image], None]


class Recorder(Disk):
    """Does it, and remembers how; ``without`` are effects that are left out."""

    def __init__(self, root: Path, without: frozenset[str] = frozenset()) -> None:
        self.root, self.without = root, without
        self.image = Image()
        self.steps: list[tuple[str, Step | None, str]] = []
        """What, how it changes an image, what was said."""
        self._names: dict[Path, int] = {}
        for path in sorted(root.rglob("*")):
            self._found(path)

    def say(self, text: str) -> None:
        self.steps.append(("say", None, text))

    def create(self, path: Path, mode: int = 0o600) -> File:
        self._entered(path, "create", emptied=True)
        return super().create(path, mode)

    def resume(self, path: Path, mode: int = 0o600) -> File:
        self._entered(path, "resume", emptied=False)
        return super().resume(path, mode)

    def write(self, file: File, data: bytes, offset: int) -> None:
        number, kept = self._number(file.path), bytes(data)
        self._do("write", lambda on: on.inodes[number].pending.append((offset, kept)))
        super().write(file, data, offset)

    def truncate(self, file: File, size: int) -> None:
        number = self._number(file.path)
        self._do("truncate", lambda on: _cut_to(on.inodes[number], size))
        super().truncate(file, size)

    def sync(self, file: File) -> None:
        number = self._number(file.path)
        if "sync" not in self.without:
            self._do("sync", lambda on: _settle(on.inodes[number]))
            super().sync(file)

    def rename(self, old: Path, new: Path) -> None:
        number = self._names.pop(self._inner(old))
        self._names[self._inner(new)] = number
        self._named("rename", (self._inner(old), None), (self._inner(new), number))
        super().rename(old, new)

    def unlink(self, path: Path) -> None:
        self._names.pop(self._inner(path), None)
        self._named("unlink", (self._inner(path), None))
        super().unlink(path)

    def mkdir(self, path: Path, mode: int = 0o700) -> None:
        self._names[self._inner(path)] = FOLDER
        self._named("mkdir", (self._inner(path), FOLDER))
        super().mkdir(path, mode)

    def rmdir(self, path: Path) -> None:
        self._names.pop(self._inner(path))
        self._named("rmdir", (self._inner(path), None))
        super().rmdir(path)

    def sync_folder(self, path: Path) -> None:
        if "sync_folder" not in self.without:
            inner = self._inner(path)
            self._do("sync_folder", lambda on: _settle_folder(on, inner))
            super().sync_folder(path)

    def commit(self, connection: sqlite3.Connection, label: str) -> None:
        (_, _, name) = connection.execute("PRAGMA database_list").fetchone()
        [(level,)] = connection.execute("PRAGMA synchronous").fetchall()
        super().commit(connection, label)
        number, held = self._number(Path(name)), connection.serialize()
        full = level >= 2
        self._do("commit", lambda on: _committed(on.inodes[number], held, full))

    def _inner(self, path: Path) -> Path:
        return path.relative_to(self.root)

    def _number(self, path: Path) -> int:
        return self._names[self._inner(path)]

    def _do(self, what: str, step: Step) -> None:
        self.steps.append((what, step, ""))

    def _named(self, what: str, *group: tuple[Path, int | None]) -> None:
        self._do(what, lambda on: on.pending.append(group))

    def _entered(self, path: Path, what: str, emptied: bool) -> None:
        inner = self._inner(path)
        if inner not in self._names:
            number = self._names[inner] = len(self._names) + 1000 * len(self.steps)
            self._do(what, lambda on: _made(on, inner, number))
        elif emptied:
            number = self._names[inner]
            self._do(what, lambda on: _cut_to(on.inodes[number], 0))

    def _found(self, path: Path) -> None:
        """What is there before is durable."""
        inner = self._inner(path)
        if path.is_dir():
            self._names[inner] = self.image.durable[inner] = FOLDER
        elif not path.name.endswith(("-wal", "-shm")):
            number = self._names[inner] = self.image.durable[inner] = len(self._names)
            inode = self.image.inodes[number] = Inode(path.read_bytes())
            if is_database(path):
                with closing(sqlite3.connect(path)) as connection:
                    inode.versions = [connection.serialize()]


def explore(
    name: str,
    seed: int,
    states: int,
    *,
    without: frozenset[str] = frozenset(),
    mutant: Callable[[], AbstractContextManager[object]] = nullcontext,
    stop_at_first: bool = False,
) -> Campaign:
    """Draw so many different states of one flow, of as many runs as that takes."""
    campaign = Campaign(f"states after a cut, {name}", seed)
    with scratch() as folder, mutant():
        run = 0
        while campaign.faults < states:
            before = campaign.faults
            _explore(name, seed + 1000 * run, states, without, campaign, folder)
            run += 1
            if campaign.faults == before or (stop_at_first and campaign.violations):
                break
    return campaign


def _explore(
    name: str, seed: int, states: int, without: frozenset[str], campaign: Campaign,
    folder: Path,
) -> None:  # fmt: skip
    flow, draw = load(name, seed), random.Random(seed)
    root = folder / "recorded"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    flow.prepare(root)
    recorder = Recorder(root, without)
    flow.run(root, recorder, recorder.say)
    campaign.points += len(recorder.steps) + 1
    seen: set[bytes] = set()
    for where, image, said in _cuts(recorder):
        for _ in range(2 + 3 * len(image.pending) + 3 * _unsynced(image)):
            if campaign.faults >= states:
                return
            files = drawn(image, draw)
            key = _key(files, said)
            if key in seen:
                continue
            seen.add(key)
            state = folder / "state"
            materialised(files, state)
            campaign.faults += 1
            campaign.found(
                f"seed {seed}, {where}",
                judged(
                    flow,
                    state,
                    said,
                    twice=draw.random() < 0.1,
                    to_the_end=draw.random() < 0.25,
                ),
            )


def _cuts(recorder: Recorder) -> Iterator[tuple[str, Image, list[str]]]:
    """Each moment: before every step, in the middle of it, and after the last."""
    image, said = deepcopy(recorder.image), []
    yield "before all", image, said
    for index, (what, step, text) in enumerate(recorder.steps, 1):
        if step is None:
            said = [*said, text]
            continue
        if what == "commit":  # under way: it may be there, and nobody was told
            doubtful = deepcopy(image)
            versions = {n: list(i.versions) for n, i in doubtful.inodes.items()}
            step(doubtful)
            for number, inode in doubtful.inodes.items():
                if inode.versions != versions[number]:
                    inode.versions = [*versions[number], inode.versions[-1]]
            yield f"in step {index} ({what})", doubtful, said
        step(image)
        yield f"step {index} ({what})", image, said


def drawn(image: Image, draw: random.Random) -> dict[Path, bytes | None]:
    """One state of a disk: file → what is in it; None: a folder."""
    names = dict(image.durable)
    share = draw.choice((0.0, 0.1, 0.5, 0.9, 1.0))
    groups = [one for one in image.pending if draw.random() < share]
    if draw.random() < 0.2:
        draw.shuffle(groups)
    for group in groups:
        for path, number in group:
            if number is None:
                names.pop(path, None)
            else:
                names[path] = number
    found: dict[Path, bytes | None] = {}
    contents: dict[int, bytes] = {}
    for path in sorted(names):
        if path.parent != Path() and path.parent not in found:
            continue  # its folder is not there
        number = names[path]
        if number == FOLDER:
            found[path] = None
            continue
        if number not in contents:
            contents[number] = _content(image.inodes[number], draw)
        found[path] = contents[number]
    return found


def materialised(files: dict[Path, bytes | None], state: Path) -> None:
    """A real folder with that in it."""
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir()
    for path, data in files.items():
        if data is None:
            (state / path).mkdir(mode=0o700)
        else:
            (state / path).write_bytes(data)


def _content(inode: Inode, draw: random.Random) -> bytes:
    if inode.versions:
        return draw.choice(inode.versions)
    share = draw.choice((0.0, 0.5, 1.0))
    data = bytearray(inode.durable)
    for offset, part in inode.pending:
        if draw.random() >= share and share < 1.0:
            continue
        _apply(data, offset, part, draw if draw.random() < 0.5 else None)
    return bytes(data)


def _apply(
    data: bytearray, offset: int, part: bytes, torn: random.Random | None
) -> None:
    if offset < 0:
        size = int.from_bytes(part)
        del data[size:]
        data.extend(bytes(max(0, size - len(data))))
        return
    if torn is not None and torn.random() < 0.5:  # the file did not grow to its end
        part = part[: torn.randrange(len(part) + 1)]
    data.extend(bytes(max(0, offset + len(part) - len(data))))
    for start in range(0, len(part), SECTOR):
        if torn is None or torn.random() < 0.5:
            data[offset + start : offset + start + SECTOR] = part[
                start : start + SECTOR
            ]


def _made(on: Image, inner: Path, number: int) -> None:
    on.inodes[number] = Inode()
    on.pending.append(((inner, number),))


def _cut_to(inode: Inode, size: int) -> None:
    inode.pending.append((-1, size.to_bytes(8)))


def _settle(inode: Inode) -> None:
    data = bytearray(inode.durable)
    for offset, part in inode.pending:
        _apply(data, offset, part, None)
    inode.durable, inode.pending = bytes(data), []


def _settle_folder(on: Image, folder: Path) -> None:
    """Every name in the folder is durable, as it is now."""
    left = []
    for group in on.pending:
        if any(path.parent == folder for path, _ in group):
            for path, number in group:
                if number is None:
                    on.durable.pop(path, None)
                else:
                    on.durable[path] = number
        else:
            left.append(group)
    on.pending = left


def _committed(inode: Inode, held: bytes, full: bool) -> None:
    inode.versions = [held] if full else [*(inode.versions or [b""]), held]


def _unsynced(image: Image) -> int:
    return sum(
        len(one.pending) + max(0, len(one.versions) - 1)
        for one in image.inodes.values()
    )


def _key(files: dict[Path, bytes | None], said: list[str]) -> bytes:
    found = hashlib.sha256(repr(len(said)).encode())
    for path, data in files.items():
        found.update(f"{path}\0{-1 if data is None else len(data)}\0".encode())
        found.update(data or b"")
    return found.digest()
