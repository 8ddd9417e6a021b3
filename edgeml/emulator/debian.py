"""Debian packages: fetched by their digests, unpacked without dpkg and without root.

The rules it keeps:

1. Not a byte is unpacked before its SHA-256 is right; where it came from does not
   matter then.
2. Debian's own client fetches where there is one: it knows the user's proxies. An
   archive drops versions that were replaced; Debian's snapshots have them all.
3. Nothing is written outside of the folder, whatever a package says; no script of a
   package is run.
"""

import lzma
import os
import shutil
import subprocess
import tarfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import quote

from ..cache import file_digest
from ..errors import MachineLacks
from .lock import Package

MIRROR = "EDGEML_DEBIAN_MIRROR"
"""Variable: a Debian archive to be asked in place of the usual one."""
ARCHIVE = "http://deb.debian.org/debian"
SNAPSHOT = "http://snapshot.debian.org/archive/debian/{moment}"
APT_HELPER = Path("/usr/lib/apt/apt-helper")
TIMEOUT_S = 60
_MAGIC = b"!<arch>\n"
_HEADER = 60
_DAMAGED = (OSError, ValueError, EOFError, lzma.LZMAError, tarfile.TarError)


def archives(moment: str) -> list[str]:
    """Where packages may be had, in this order."""
    first = os.environ.get(MIRROR, "").rstrip("/") or ARCHIVE
    return [first, SNAPSHOT.format(moment=moment)]


def fetch(packages: Sequence[Package], folder: Path, moment: str) -> list[Path]:
    """Have the packages as files in ``folder``, digests checked, in their order.

    Raises:
        MachineLacks: one cannot be had anywhere, or is not what the lock says.
    """
    paths = [folder / f"{one.sha256[:16]}.deb" for one in packages]
    wrong: dict[Package, str] = {}
    for archive in archives(moment):
        wanted = [
            (one, path)
            for one, path in zip(packages, paths, strict=True)
            if not path.exists()
        ]
        if not wanted:
            break
        got = _by_apt if APT_HELPER.exists() else _by_http
        said = got(
            [(f"{archive}/{quote(one.path)}", one, path) for one, path in wanted]
        )
        for one, path in wanted:
            if not path.exists():
                wrong[one] = f"{archive} does not give it ({said})"
            elif file_digest(path) != one.sha256:
                path.unlink()
                wrong[one] = f"{archive} gave another file than the lock says"
    missing = [
        one for one, path in zip(packages, paths, strict=True) if not path.exists()
    ]
    if missing:
        one = missing[0]
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise MachineLacks(
            f"{one.name} {one.version}{more} cannot be had: {wrong[one]}; see to the "
            f"network, or set {MIRROR} to an archive of Debian that is reached (also "
            "file:///...); scripts/lock-emulator moves to newer versions"
        )
    return paths


def _by_apt(wanted: Sequence[tuple[str, Package, Path]]) -> str:
    """All in one run of Debian's client; it checks digests, too."""
    words = [
        word
        for url, one, path in wanted
        for word in (url, str(path), f"SHA256:{one.sha256}")
    ]
    done = subprocess.run(
        [str(APT_HELPER), "-oAPT::Sandbox::User=root", "-q", "download-file", *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if line.startswith("E:")]
    return lines[0][2:].strip() if lines else f"exit code {done.returncode}"


def _by_http(wanted: Sequence[tuple[str, Package, Path]]) -> str:
    said = ""
    for url, one, path in wanted:
        try:
            with (
                urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer,  # noqa: S310
                path.open("wb") as file,
            ):
                left = one.size + 1  # a longer one has a wrong digest anyway
                while left and (data := answer.read(min(left, 1 << 20))):
                    left -= file.write(data)
        except (OSError, ValueError) as error:
            path.unlink(missing_ok=True)
            said = said or str(error)
    return said


def unpack(deb: Path, folder: Path, keep: Callable[[str], bool]) -> None:
    """Write a package's files into ``folder``: those whose path ``keep`` likes.

    Links to absolute paths are made relative: ``folder`` is the root. Owners and
    special files are left out.

    Raises:
        MachineLacks: it is no package that this can read.
    """
    try:
        with deb.open("rb") as file, _data(file) as archive:
            for member in archive:
                path = _inside(member.name)
                if path is not None and keep(str(path)):
                    _write(archive, member, folder, path)
    except _DAMAGED as error:
        raise MachineLacks(f"{deb.name} cannot be unpacked: {error}") from error


def _data(file: IO[bytes]) -> tarfile.TarFile:
    """The files of a package: member ``data.tar.xz`` of an ar archive."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise OSError("it is not a Debian package")
    for name, size in _members(file):
        if name == "data.tar.xz":
            return tarfile.open(fileobj=file, mode="r|xz")
        if name.startswith("data.tar"):
            raise OSError(f"{name} is compressed as only newer Pythons can read it")
        file.seek(size + size % 2, os.SEEK_CUR)
    raise OSError("there is no data.tar in it")


def _members(file: IO[bytes]) -> Iterator[tuple[str, int]]:
    while header := file.read(_HEADER):
        yield header[:16].decode("ascii", "replace").rstrip(" /"), int(header[48:58])


def _inside(name: str) -> PurePosixPath | None:
    """The path below the root; None for the root itself and for what climbs out."""
    path = PurePosixPath("/", name).relative_to("/")
    return None if path == PurePosixPath() or ".." in path.parts else path


def _write(
    archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, path: PurePosixPath
) -> None:
    place = folder / path
    if not place.parent.resolve().is_relative_to(folder.resolve()):
        return
    if member.isdir():
        if not place.is_symlink():
            place.mkdir(parents=True, exist_ok=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_symlink() or place.exists():
        place.unlink()
    if member.isfile():
        source = archive.extractfile(member)
        assert source is not None, "a file has content"
        with place.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        place.chmod(0o755 if member.mode & 0o111 else 0o644)
    elif member.issym():
        to = PurePosixPath(member.linkname)
        if to.is_absolute():
            up = [".."] * (len(path.parts) - 1)
            to = PurePosixPath(*up, to.relative_to("/"))
        place.symlink_to(to)
    elif member.islnk():
        other = _inside(member.linkname)
        if other is not None and (folder / other).is_file():
            shutil.copy(folder / other, place)
