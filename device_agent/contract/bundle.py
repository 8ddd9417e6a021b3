"""Reading a bundle that nobody vouches for yet.

The rules it keeps:

1. Nothing is believed: every header, size and digest is compared with the manifest,
   every byte is read once, and memory stays bounded whatever the file claims.
2. The manifest comes first and is canonical JSON; the members follow, sorted by path,
   each listed once and present once; two zero blocks end the file.
3. One content has one encoding, so the SHA-256 of the file is the bundle's name.
4. Formats that run code when loaded are refused (:mod:`.inert`).
5. Every refusal is a :class:`BundleError` that names the member.
"""

import hashlib
import io
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from . import tar
from .errors import BundleError
from .inert import check_inert
from .manifest import (
    MANIFEST_BYTES_MAX,
    Manifest,
    Member,
    Role,
    canonical_json,
    parse_manifest,
)

MANIFEST = "manifest.json"
SUFFIX = ".edgeml"
_CHUNK_BYTES = 1 << 20
_ONCE: tuple[Role, ...] = (
    "baseline", "golden", "labels", "card", "provenance", "sbom",
)  # fmt: skip


@dataclass(frozen=True)
class BundleLimits:
    """What a bundle may be at most; a device with less sets less."""

    total_bytes: int = 2 << 30
    member_bytes: int = 1 << 30
    manifest_bytes: int = MANIFEST_BYTES_MAX
    members: int = 256


@dataclass(frozen=True)
class Bundle:
    """A verified bundle; members are read again, and checked again, when asked for."""

    manifest: Manifest
    manifest_bytes: bytes
    """The manifest as it was read, with the fields that this program does not know."""
    sha256: str
    size_bytes: int
    _source: Path | bytes
    _offsets: Mapping[str, int]

    def paths(self) -> tuple[str, ...]:
        """Paths of all members but the manifest, sorted."""
        return tuple(member.path for member in self.manifest.members)

    def path_of(self, role: Role) -> str | None:
        """Path of the first member with that role, or None."""
        return next((m.path for m in self.manifest.members if m.role == role), None)

    def member(self, path: str) -> bytes:
        """The bytes of a member.

        Raises:
            BundleError: no such member, or the file changed since it was verified.
        """
        parts: list[bytes] = []
        self._copy(path, parts.append)
        return b"".join(parts)

    def extract(self, path: str, target: BinaryIO) -> None:
        """Write a member to ``target``, a chunk at a time.

        Raises:
            BundleError: no such member, or the file changed since it was verified.
        """
        self._copy(path, target.write)

    def _copy(self, path: str, write: Callable[[bytes], object]) -> None:
        listed = next((m for m in self.manifest.members if m.path == path), None)
        if listed is None:
            raise BundleError(
                f"the bundle has no member {path!r}; it has {', '.join(self.paths())}"
            )
        digest = hashlib.sha256()
        with _opened(self._source) as stream:
            stream.seek(self._offsets[path])
            for chunk in _chunks(stream, listed.size, path):
                digest.update(chunk)
                write(chunk)
        if digest.hexdigest() != listed.sha256:
            raise BundleError(f"member {path!r} changed after the bundle was verified")


def read_bundle(
    source: Path | bytes, limits: BundleLimits | None = None, scan: bool = True
) -> Bundle:
    """Verify a bundle, whole.

    Args:
        source: the file, or its bytes.
        limits: what it may be at most; None: the defaults.
        scan: look into members for code; off only for what was just verified.

    Raises:
        BundleError: anything is not as the rules of this module say.
    """
    limits = limits or BundleLimits()
    try:
        with _opened(source) as stream:
            return _Reader(stream, limits, source).read(scan)
    except OSError as error:
        raise BundleError(f"{source!s:.200} cannot be read: {error}") from error


def unpack(bundle: Bundle, folder: Path) -> None:
    """Write manifest and members below ``folder``, which appears whole or not at all.

    Raises:
        BundleError: the folder exists and is not empty, cannot be written, or the
            bundle changed since it was verified.
    """
    if folder.is_symlink() or (folder.exists() and not _is_empty(folder)):
        raise BundleError(f"{folder} is there already; name a new or an empty folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise BundleError(f"{folder} cannot be written: {error.strerror}") from error
    try:
        part.chmod(0o755)
        (part / MANIFEST).write_bytes(bundle.manifest_bytes)
        for path in bundle.paths():
            target = part / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as stream:
                bundle.extract(path, stream)
        part.rename(folder)
    except OSError as error:
        raise BundleError(f"{folder} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_members(manifest: Manifest, limits: BundleLimits) -> None:
    """Refuse a member list that no bundle may have, before any member is read.

    Raises:
        BundleError: too many or too large members, bad or doubled paths, not sorted,
            a role held twice, or an artifact that is not listed.
    """
    members = manifest.members
    if len(members) > limits.members:
        raise BundleError(
            f"{MANIFEST} lists {len(members)} members; at most {limits.members} allowed"
        )
    _check_paths([member.path for member in members])
    for member in members:
        if member.size > limits.member_bytes:
            raise BundleError(
                f"member {member.path!r} has {member.size} bytes; "
                f"at most {limits.member_bytes} allowed"
            )
    for role in _ONCE:
        held = [member.path for member in members if member.role == role]
        if len(held) > 1:
            raise BundleError(f"members {held} all have the role {role!r}; one may")
    artifacts = [member.path for member in members if member.role == "artifact"]
    if manifest.artifact not in artifacts:
        raise BundleError(
            f"member {manifest.artifact!r} is to be loaded but is not among "
            f"the artifact's files {artifacts}"
        )


def _check_paths(paths: list[str]) -> None:
    seen: dict[str, str] = {MANIFEST: MANIFEST}
    for path in paths:
        tar.check_path(path)
        twin = seen.get(path.lower())
        if twin == path:
            raise BundleError(f"member {path!r} is listed twice")
        if twin is not None:
            raise BundleError(
                f"members {twin!r} and {path!r} are one file where case is ignored"
            )
        seen[path.lower()] = path
    for path in paths:
        for cut, sign in enumerate(path):
            if sign == "/" and path[:cut].lower() in seen:
                raise BundleError(
                    f"member {path[:cut]!r} is both a file and the folder of {path!r}"
                )
    for before, after in pairwise(paths):
        if before > after:
            raise BundleError(f"member {after!r} is listed after {before!r}: unsorted")


class _Reader:
    """One pass over the file; then a look into each member."""

    def __init__(
        self, stream: BinaryIO, limits: BundleLimits, source: Path | bytes
    ) -> None:
        self._stream = stream
        self._limits = limits
        self._source = source
        self._digest = hashlib.sha256()
        self._size = stream.seek(0, os.SEEK_END)
        stream.seek(0)

    def read(self, scan: bool) -> Bundle:
        if self._size > self._limits.total_bytes:
            raise BundleError(
                f"the bundle has {self._size} bytes; "
                f"at most {self._limits.total_bytes} allowed"
            )
        manifest, raw = self._manifest()
        check_members(manifest, self._limits)
        offsets = {member.path: self._member(member) for member in manifest.members}
        self._end()
        if scan:
            for member in manifest.members:
                section = _Section(self._stream, offsets[member.path], member.size)
                check_inert(member.path, io.BufferedReader(section))
        digest = self._digest.hexdigest()
        return Bundle(manifest, raw, digest, self._size, self._source, offsets)

    def _manifest(self) -> tuple[Manifest, bytes]:
        path, size = self._header(MANIFEST)
        if path != MANIFEST:
            raise BundleError(f"the first member is {path!r}; expected {MANIFEST!r}")
        if size > self._limits.manifest_bytes:
            raise BundleError(
                f"{MANIFEST} has {size} bytes; "
                f"at most {self._limits.manifest_bytes} allowed"
            )
        raw = b"".join(self._data(MANIFEST, size))
        manifest = parse_manifest(raw)
        try:
            canonical = canonical_json(json.loads(raw))
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{MANIFEST} is not canonical JSON: {error}") from error
        if canonical != raw:
            raise BundleError(
                f"{MANIFEST} is not canonical JSON (sorted keys, no spaces, each once)"
            )
        return manifest, raw

    def _member(self, listed: Member) -> int:
        path, size = self._header(listed.path)
        if path != listed.path:
            raise BundleError(
                f"found member {path!r} where {MANIFEST} lists {listed.path!r}; "
                "a member is missing, not listed, doubled or out of order"
            )
        if size != listed.size:
            raise BundleError(
                f"member {path!r} has {size} bytes; {MANIFEST} says {listed.size}"
            )
        offset = self._stream.tell()
        digest = hashlib.sha256()
        for chunk in self._data(path, size):
            digest.update(chunk)
        if digest.hexdigest() != listed.sha256:
            raise BundleError(
                f"member {path!r} has SHA-256 {digest.hexdigest()}; "
                f"{MANIFEST} says {listed.sha256}"
            )
        return offset

    def _header(self, expected: str) -> tuple[str, int]:
        block = self._stream.read(tar.BLOCK_BYTES)
        self._digest.update(block)
        if len(block) < tar.BLOCK_BYTES:
            raise BundleError(f"the file ends where member {expected!r} should begin")
        if not any(block):
            raise BundleError(f"member {expected!r} is missing")
        path, size = tar.parse(block)
        if self._stream.tell() + size > self._size:
            raise BundleError(
                f"member {path!r} claims {size} bytes; the file ends before"
            )
        return path, size

    def _data(self, path: str, size: int) -> Iterator[bytes]:
        for chunk in _chunks(self._stream, size, path):
            self._digest.update(chunk)
            yield chunk
        filler = self._stream.read(len(tar.padding(size)))
        self._digest.update(filler)
        if filler != tar.padding(size):
            raise BundleError(f"member {path!r} is not followed by zero padding")

    def _end(self) -> None:
        end = self._stream.read(len(tar.END))
        self._digest.update(end)
        if len(end) == len(tar.END) and any(end[: tar.BLOCK_BYTES]):
            path, _ = tar.parse(end[: tar.BLOCK_BYTES])
            raise BundleError(f"member {path!r} is not listed in {MANIFEST}")
        if end != tar.END:
            raise BundleError("the file does not end with two zero blocks")
        if self._stream.read(1):
            raise BundleError("bytes follow the end of the archive")


class _Section(io.RawIOBase):
    """One member as a file of its own."""

    def __init__(self, stream: BinaryIO, start: int, size: int) -> None:
        self._stream, self._start, self._size, self._at = stream, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("seek before the start of a member")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        self._stream.seek(self._start + self._at)
        wanted = max(min(len(buffer), self._size - self._at), 0)
        data = self._stream.read(wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


@contextmanager
def _opened(source: Path | bytes) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    try:
        # without O_NONBLOCK, opening a pipe would wait for a writer
        stream = os.fdopen(os.open(source, os.O_RDONLY | os.O_NONBLOCK), "rb")
    except OSError as error:
        raise BundleError(f"{source} cannot be read: {error.strerror}") from error
    with stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise BundleError(f"{source} is not a regular file")
        yield stream


def _chunks(stream: BinaryIO, size: int, path: str) -> Iterator[bytes]:
    left = size
    while left:
        try:
            chunk = stream.read(min(left, _CHUNK_BYTES))
        except OSError as error:
            raise BundleError(f"member {path!r} cannot be read: {error}") from error
        if not chunk:
            raise BundleError(f"member {path!r} is cut off: {left} bytes are missing")
        left -= len(chunk)
        yield chunk


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())
