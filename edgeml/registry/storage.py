"""Where a registry lies: a folder, or an object store by way of fsspec.

The rules it keeps:

1. A file appears whole or not at all.
2. ``create`` makes a file that is not there; of two that try, one is told so. (As
   exclusive as the file system is: local folders are, and object stores whose fsspec
   file system knows ``mode="create"``.)
3. Paths are below the registry's root, with ``/``.
"""

import os
import tempfile
from pathlib import Path
from typing import Any, Protocol

import fsspec

from ..errors import InputError, UsageError


class Storage(Protocol):
    """Files by path."""

    url: str

    def read(self, path: str) -> bytes | None:
        """The file's bytes; None: there is no such file."""

    def names(self, folder: str) -> tuple[str, ...]:
        """Paths of all files below ``folder``, sorted."""

    def write(self, path: str, data: bytes) -> None:
        """Make or replace a file."""

    def create(self, path: str, data: bytes) -> None:
        """Make a file.

        Raises:
            FileExistsError: it is there.
        """

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""


def storage(url: str) -> Storage:
    """The storage behind a path or a URL (``s3://…``, ``memory://…``).

    Raises:
        UsageError: no file system for that URL is installed.
    """
    if "://" not in url or url.startswith("file://"):
        return Folder(Path(url.removeprefix("file://")))
    try:
        return Objects(url)
    except (ValueError, ImportError) as cause:
        raise UsageError(f"registry {url}: {cause}") from cause


class Folder:
    """A registry in a local folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.url = str(root)

    def read(self, path: str) -> bytes | None:
        """See :class:`Storage`."""
        try:
            return (self._root / path).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as cause:
            raise InputError(f"{self._root / path} cannot be read: {cause}") from cause

    def names(self, folder: str) -> tuple[str, ...]:
        """See :class:`Storage`."""
        found = (self._root / folder).rglob("*")
        return tuple(
            sorted(
                one.relative_to(self._root).as_posix()
                for one in found
                if one.is_file() and not one.name.startswith(".")
            )
        )

    def write(self, path: str, data: bytes) -> None:
        """See :class:`Storage`."""
        part = self._part(path, data)
        part.replace(self._root / path)
        self._settle(path)

    def create(self, path: str, data: bytes) -> None:
        """See :class:`Storage`."""
        part = self._part(path, data)
        try:
            os.link(part, self._root / path)
        finally:
            part.unlink()
        self._settle(path)

    def remove(self, path: str) -> None:
        """See :class:`Storage`."""
        (self._root / path).unlink(missing_ok=True)

    def _part(self, path: str, data: bytes) -> Path:
        folder = (self._root / path).parent
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".part-", dir=folder)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part = Path(name)
        part.chmod(0o644)
        return part

    def _settle(self, path: str) -> None:
        handle = os.open((self._root / path).parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class Objects:
    """A registry behind an fsspec file system."""

    def __init__(self, url: str) -> None:
        self.url = url
        found: tuple[Any, str] = fsspec.core.url_to_fs(url)
        self._system, self._root = found[0], found[1].rstrip("/")

    def read(self, path: str) -> bytes | None:
        """See :class:`Storage`."""
        try:
            return bytes(self._system.cat_file(self._at(path)))
        except FileNotFoundError:
            return None
        except OSError as cause:
            raise InputError(f"{self._at(path)} cannot be read: {cause}") from cause

    def names(self, folder: str) -> tuple[str, ...]:
        """See :class:`Storage`."""
        self._system.invalidate_cache()
        try:
            found = self._system.find(self._at(folder))
        except FileNotFoundError:
            return ()
        cut = len(self._at(""))
        return tuple(sorted(str(one)[cut:] for one in found))

    def write(self, path: str, data: bytes) -> None:
        """See :class:`Storage`."""
        self._ready(path)
        self._system.pipe_file(self._at(path), data)

    def create(self, path: str, data: bytes) -> None:
        """See :class:`Storage`."""
        self._ready(path)
        self._system.pipe_file(self._at(path), data, mode="create")

    def remove(self, path: str) -> None:
        """See :class:`Storage`."""
        if self._system.exists(self._at(path)):
            self._system.rm_file(self._at(path))

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _ready(self, path: str) -> None:
        self._system.makedirs(self._at(path).rpartition("/")[0], exist_ok=True)
