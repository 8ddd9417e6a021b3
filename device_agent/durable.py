"""The one seam for durable effects: what must survive a power cut goes through it.

The rules it keeps:

1. A file that others may find under its name is never written in place: it is written
   beside it, synced, renamed, and the folder is synced (:func:`replace`).
2. A name in a folder is durable when the folder was synced, not before: so it is synced
   again even where what should be done was found done, for whoever did it may have been
   cut off in between.
3. An error of fsync is a lost file: it is given up, never synced again and trusted.
4. Each method of :class:`Disk` is one effect, the unit at which ``tests/faults`` cuts
   the power. What nobody would miss (locks, sockets, caches) does not pass here.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from .contract.codes import Reason
from .contract.errors import of_disk
from .errors import DamagedError, LockedError, StorageError

NEW: Final = ".new"
"""A file of this ending whose name begins with a dot was never finished."""

_SQLITE_DISK = {
    sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY,
}  # fmt: skip
_SQLITE_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


@dataclass(frozen=True)
class File:
    """A file that is open for writing."""

    path: Path
    descriptor: int


class Disk:
    """One method per durable effect.

    Raises:
        StorageError: by every method; ``reason`` says whether the disk is full.
    """

    def create(self, path: Path, mode: int = 0o600) -> File:
        """A new, empty file; one of that name is emptied."""
        return self._open(path, os.O_CREAT | os.O_TRUNC, mode)

    def resume(self, path: Path, mode: int = 0o600) -> File:
        """A file to write on in; a new one if there is none."""
        return self._open(path, os.O_CREAT, mode)

    def write(self, file: File, data: bytes, offset: int) -> None:
        """All of ``data``; not durable before :meth:`sync`."""
        with told(f"write to {file.path}"):
            view = memoryview(data)
            while view:
                done = os.pwrite(file.descriptor, view, offset)
                view, offset = view[done:], offset + done

    def truncate(self, file: File, size: int) -> None:
        """Cut the file to ``size`` bytes."""
        with told(f"truncate {file.path}"):
            os.ftruncate(file.descriptor, size)

    def sync(self, file: File) -> None:
        """What was written to the file is durable; its name is not yet."""
        with told(f"fsync {file.path}"):
            os.fsync(file.descriptor)

    def close(self, file: File) -> None:
        """No effect of its own."""
        os.close(file.descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """Atomic; takes the place of ``new``."""
        with told(f"rename {old} to {new}"):
            old.rename(new)

    def unlink(self, path: Path) -> None:
        """Take a file's name away."""
        with told(f"remove {path}"):
            path.unlink()

    def mkdir(self, path: Path, mode: int = 0o700) -> None:
        """Make one folder."""
        with told(f"make the folder {path}"):
            path.mkdir(mode)

    def rmdir(self, path: Path) -> None:
        """Remove an empty folder."""
        with told(f"remove the folder {path}"):
            path.rmdir()

    def sync_folder(self, path: Path) -> None:
        """The names in the folder are durable."""
        with told(f"fsync the folder {path}"):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def commit(self, connection: sqlite3.Connection, label: str) -> None:
        """End the transaction of a database (:mod:`.database`); it is durable then."""
        with told(f"commit of {label}"):
            connection.execute("COMMIT")

    def _open(self, path: Path, flags: int, mode: int) -> File:
        flags |= os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        with told(f"open {path} for writing"):
            return File(path, os.open(path, flags, mode))


REAL: Final = Disk()


def replace(disk: Disk, path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file so that whoever opens it finds the old or the new one, whole.

    Raises:
        StorageError: it may be either of them; which one, only reading tells.
    """
    new = unfinished(path)
    try:
        with opened(disk, disk.create(new, mode)) as file:
            disk.write(file, data, 0)
            disk.sync(file)
        disk.rename(new, path)
    except StorageError:
        with suppress(OSError):  # else it is swept at the next start
            new.unlink()
        raise
    disk.sync_folder(path.parent)


def move(disk: Disk, old: Path, new: Path) -> None:
    """Rename a synced file, within one file system; done already is done.

    Raises:
        StorageError: also where neither is there.
    """
    with told(f"look for {old}"):
        done = new.exists() and not old.exists()
    if not done:
        disk.rename(old, new)
    disk.sync_folder(new.parent)
    if old.parent != new.parent:
        disk.sync_folder(old.parent)


def remove(disk: Disk, path: Path) -> None:
    """Take a file away; done already is done.

    Raises:
        StorageError: it may still be there, or come back.
    """
    with told(f"look for {path}"):
        there = path.exists() or path.is_symlink()
    if there:
        disk.unlink(path)
    disk.sync_folder(path.parent)


def make_folder(disk: Disk, path: Path, mode: int = 0o700) -> None:
    """Make one folder; its parents were made the same way, each by its own call.

    Raises:
        StorageError: it cannot be made, or something else has its name.
    """
    if not path.is_dir():
        disk.mkdir(path, mode)
    disk.sync_folder(path.parent)


def sweep(disk: Disk, folder: Path) -> int:
    """Remove what :func:`replace` did not finish in a folder; how many there were.

    Raises:
        StorageError: something could not be removed.
    """
    with told(f"look into {folder}"):
        left = sorted(folder.glob(f".*{NEW}"))
    for path in left:
        disk.unlink(path)
    return len(left)


def unfinished(path: Path) -> Path:
    """Where :func:`replace` writes what will be ``path``."""
    return path.with_name(f".{path.name}{NEW}")


@contextmanager
def opened(disk: Disk, file: File) -> Iterator[File]:
    """Close the file at the end, however it comes."""
    try:
        yield file
    finally:
        disk.close(file)


class StateLock:
    """One process per state directory; the lock ends with the process."""

    def __init__(self, state: Path) -> None:
        """Take it.

        Raises:
            LockedError: another process has it.
            StorageError: the directory cannot be written.
        """
        path = state / "lock"
        with told(f"lock {path}"):
            self._descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            owner = os.pread(self._descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise LockedError(
                f"{state} is in use by process {owner or 'unknown'}: expected one "
                "agent per state directory; stop that one, or give this one its own "
                "--state"
            ) from cause
        with suppress(OSError):  # for people only, and the disk may be full
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let another process have it."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@contextmanager
def told(what: str) -> Iterator[None]:
    """Say of an error of the system or of SQLite what it means for the file.

    Raises:
        StorageError: the disk is full or failed.
        DamagedError: the file is not a database, or a broken one.
    """
    try:
        yield
    except OSError as cause:
        raise StorageError(of_disk(cause), f"{what}: {cause.strerror}") from cause
    except sqlite3.DatabaseError as cause:
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise StorageError(Reason.NO_SPACE, f"{what}: {cause}") from cause
        if code in _SQLITE_DISK:
            raise StorageError(Reason.STORAGE, f"{what}: {cause}") from cause
        if code in _SQLITE_DAMAGED:
            raise DamagedError(f"{what}: {cause}") from cause
        raise
