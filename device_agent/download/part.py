"""The file that grows, and the digest of what is in it."""

import hashlib
from pathlib import Path

from ..contract.codes import Reason
from ..durable import Disk, File
from ..errors import StorageError
from .rules import DownloadLimits


class Part:
    """The file that grows, and the digest of what is in it."""

    def __init__(self, disk: Disk, path: Path, limits: DownloadLimits) -> None:
        """Open it; what is there already is hashed.

        Raises:
            StorageError: it cannot be written or read.
        """
        self._disk, self._limits = disk, limits
        self._file: File = disk.resume(path)
        try:
            disk.sync_folder(path.parent)
            self._hash, self.size = _hashed(path, limits.chunk_bytes)
        except BaseException:
            disk.close(self._file)
            raise
        self._synced = self.size

    @property
    def digest(self) -> str:
        """SHA-256 of what is there, in hexadecimal."""
        return self._hash.hexdigest()

    def append(self, data: bytes) -> None:
        """Write on; durable now and then."""
        self._disk.write(self._file, data, self.size)
        self._hash.update(data)
        self.size += len(data)
        if self.size - self._synced >= self._limits.sync_bytes:
            self.sync()

    def sync(self) -> None:
        """What was written is durable."""
        if self._synced != self.size:
            self._disk.sync(self._file)
            self._synced = self.size

    def finish(self) -> None:
        """Durable, even if none of it came now: who wrote it may not have synced."""
        self._disk.sync(self._file)

    def restart(self) -> None:
        """Nothing is there any more."""
        self._disk.truncate(self._file, 0)
        self._hash, self.size, self._synced = hashlib.sha256(), 0, 0

    def close(self) -> None:
        """Give it back."""
        self._disk.close(self._file)


def _hashed(path: Path, chunk_bytes: int) -> tuple["hashlib._Hash", int]:
    found, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(chunk_bytes):
                found.update(chunk)
                size += len(chunk)
    except OSError as cause:
        raise StorageError(Reason.STORAGE, f"read {path}: {cause}") from cause
    return found, size
