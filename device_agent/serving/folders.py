"""Folders below ``state/run``: one per loaded bundle, gone with its process.

The rules it keeps:

1. A folder in use is locked (flock) by the process that uses it; the lock ends with
   the process, however it ends.
2. What is not locked is left over and is removed at the next start.
"""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from ..durable import told


class RunFolder:
    """A folder of this process; ``path`` exists until :meth:`remove`."""

    def __init__(self, state: Path) -> None:
        """Make and lock it.

        Raises:
            OSError: the state directory cannot be written.
        """
        parent = _parent(state)
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
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
    removed = 0
    parent = _parent(state)
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


def _parent(state: Path) -> Path:
    return state / "run"


def _locked(path: Path) -> int | None:
    """A file descriptor that holds the folder's lock; None: another process has it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # EWOULDBLOCK, or a file system that knows no locks
        os.close(descriptor)
        return None
    return descriptor
