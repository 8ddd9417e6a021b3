"""What of the emulator lies in the user's cache.

The rules it keeps:

1. A part is made in a folder of its own and renamed when it is whole; two that make
   the same part at once both succeed, and one of the two is kept.
2. A part is called by the digest of its section of the lock: a newer lock makes newer
   parts beside the older ones, which :meth:`Store.clean` removes.
"""

import os
import platform
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import MachineLacks
from . import debian, wheels
from .lock import Lock, Part, lock

Said = Callable[[str], None]
CPU = "aarch64", "arm", "x86_64"
"""The guests that are emulated, as QEMU calls them."""
_LINKS = ("blas/libblas.so.3", "lapack/liblapack.so.3")
"""Libraries that Debian's packages only choose in their scripts, which nobody runs."""
_USELESS = (
    "usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/lintian/",
    "usr/share/bug/", "usr/share/info/", "usr/share/menu/", "usr/share/pixmaps/",
    "usr/share/applications/", "usr/share/binfmts/", "usr/lib/systemd/",
)  # fmt: skip


@dataclass(frozen=True)
class Kept:
    """A part in the cache; ``current``: the lock asks for it."""

    name: str
    path: Path
    size_bytes: int
    current: bool


class Store:
    """The emulator's folder in the user's cache."""

    def __init__(self, folder: Path, locked: Lock | None = None) -> None:
        self.folder = folder
        self.lock = locked or lock()

    def qemu(self, said: Said) -> Path:
        """The folder of QEMU's programs for this host, made when it is not there.

        Raises:
            MachineLacks: there is none for this host, or it cannot be had.
        """
        here = platform.machine()
        part = self.lock.qemu.get(here)
        if part is None or platform.system() != "Linux":
            raise MachineLacks(
                f"there is no pinned QEMU for {platform.system()} on {here}; it runs "
                f"on Linux on {' or '.join(self.lock.qemu)}: use a container"
            )
        return self._have(part, said) / "usr" / "bin"

    def counter(self, said: Said) -> Path:
        """The root of a QEMU that takes plugins, made when it is not there.

        Raises:
            MachineLacks: there is none for this host, or it cannot be had.
        """
        part = self.lock.counters.get(platform.machine())
        if part is None:
            raise MachineLacks(f"no pinned QEMU counts on {platform.machine()}")
        return self._have(part, said)

    def guest(self, arch: str, said: Said) -> tuple[Part, Path]:
        """The system of a guest, made when it is not there.

        Raises:
            MachineLacks: there is none of this architecture, or it cannot be had.
        """
        part = self.lock.guests.get(arch)
        if part is None:
            raise MachineLacks(
                f"there is no guest for {arch}; there are {', '.join(self.lock.guests)}"
            )
        return part, self._have(part, said)

    def kept(self) -> list[Kept]:
        """What is in the cache."""
        current = {part.folder for part in self.lock.parts}
        return [
            Kept(path.name, path, _size(path), path.name in current)
            for path in sorted(self.folder.glob("[!.]*"))
            if path.is_dir()
        ]

    def clean(self, *, everything: bool) -> list[Kept]:
        """Remove what the lock does not ask for, or all; what was removed."""
        gone = [one for one in self.kept() if everything or not one.current]
        for one in gone:
            shutil.rmtree(one.path)
        for part in self.folder.glob(".*"):  # of those that were killed
            with suppress(ValueError):
                if not Path("/proc", part.name.rpartition(".")[2]).exists():
                    shutil.rmtree(part, ignore_errors=True)
        return gone

    def _have(self, part: Part, said: Said) -> Path:
        path = self.folder / part.folder
        if path.is_dir():
            return path
        started = time.monotonic()
        said(f"emulator: {part.name}: {part.download_bytes >> 20} MiB to fetch")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(
                prefix=f".{part.name}.", suffix=f".{os.getpid()}", dir=self.folder
            ) as making:
                made = self._make(part, Path(making))
                with suppress(OSError):  # another process was faster: theirs is as good
                    made.rename(path)
        except OSError as error:
            raise MachineLacks(
                f"{self.folder} cannot hold the emulator: {error.strerror or error}"
            ) from error
        if not path.is_dir():
            raise MachineLacks(f"{path} cannot be made; is something else there?")
        took = time.monotonic() - started
        said(f"emulator: {part.name}: ready, {_size(path) >> 20} MiB, {took:.0f} s")
        return path

    def _make(self, part: Part, folder: Path) -> Path:
        fetched, root = folder / "fetched", folder / "root"
        fetched.mkdir()
        root.mkdir()
        for deb in debian.fetch(part.debs, fetched, self.lock.snapshot):
            debian.unpack(deb, root, _kept(part))
            deb.unlink()
        if not part.python:
            return root
        for wheel in wheels.fetch(part, fetched):
            wheels.unzip(wheel, root / "site")
        libraries = root / "usr" / "lib" / part.triplet
        for link in _LINKS:
            if (libraries / link).exists():
                (libraries / Path(link).name).symlink_to(link)
        return root


def _kept(part: Part) -> Callable[[str], bool]:
    if part.python:
        return _useful
    return _of_counter if part.name.startswith("counter-") else _of_qemu


def _of_counter(path: str) -> bool:
    return path.startswith(("lib/", "lib64/", "usr/lib/")) or _of_qemu(path)


def _useful(path: str) -> bool:
    return not path.startswith(_USELESS)


def _of_qemu(path: str) -> bool:
    return path in {f"usr/bin/qemu-{cpu}" for cpu in CPU}


def _size(folder: Path) -> int:
    """Bytes on the disk of all files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
