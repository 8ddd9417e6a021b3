"""Folders below ``state/run``: one per loaded bundle, gone with its process.

Where that disk is full there is room in memory: what was committed is served.

The rules it keeps:

1. A folder in use is locked (flock) by the process that uses it; the lock ends with
   the process, however it ends.
2. What is not locked is left over and is removed at the next start.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..durable import told

MEMORY: Final = Path("/dev/shm")  # noqa: S108 - only a folder of this user in it


class RunFolder:
    """A folder of this process; ``path`` exists until :meth:`remove`."""

    def __init__(self, state: Path, *, in_memory: bool = False) -> None:
        """Make and lock it.

        Args:
            state: the state directory.
            in_memory: not on its disk.

        Raises:
            OSError: the state directory cannot be written.
        """
        parent = _in_memory(state) if in_memory else state / "run"
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if in_memory and not _is_ours(parent):
            raise PermissionError(errno.EPERM, "it is another user's", str(parent))
        self.path = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=parent))
        self._lock = _locked(self.path)

    def remove(self) -> None:
        """Take it away with all that is in it; again is harmless."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def sweep(state: Path) -> int:
    """Remove the folders of processes that have ended; how many there were.

    Raises:
        StorageError: the disk does not let it look for them.
    """
    removed, spare = _swept(state / "run"), _in_memory(state)
    if _is_ours(spare):
        removed += _swept(spare)
        with suppress(OSError):  # one of them is in use
            spare.rmdir()
    return removed


def _swept(parent: Path) -> int:
    removed = 0
    with told(f"look for what is left in {parent}"):
        for path in sorted(parent.iterdir()) if parent.is_dir() else []:
            if not path.is_dir() or path.is_symlink():
                path.unlink(missing_ok=True)
                continue
            lock = _locked(path)
            if lock is None:
                continue
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)
            removed += 1
    return removed


def _in_memory(state: Path) -> Path:
    digest = hashlib.sha256(str(state.absolute()).encode()).hexdigest()
    return MEMORY / f"edgeml-{os.getuid()}-{digest[:16]}"


def _is_ours(path: Path) -> bool:
    """Whether it is a folder of this user, where everybody can make one."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def _locked(path: Path) -> int | None:
    """A file descriptor that holds the folder's lock; None: another process has it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # EWOULDBLOCK, or a file system that knows no locks
        os.close(descriptor)
        return None
    return descriptor
