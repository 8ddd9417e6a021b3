"""Refuses data that can run code when it is loaded: pickle, in any form.

The rules it keeps:

1. Nothing here is ever unpickled: opcodes are read, never executed.
2. Found by content, not only by name: raw pickles (text and binary protocols),
   ``.npy`` with object arrays, zip archives (``.npz``, ``.pt``) holding either.
3. Compressed streams and archives in a bundle are refused, for what is in them cannot
   be seen within bounds; a zip is looked into, one level deep.
"""

import io
import pickletools
import tokenize
import zipfile
import zlib
from typing import Any, BinaryIO

import numpy as np

from .errors import BundleError

ZIP_ENTRIES_MAX = 10_000
ZIP_DIRECTORY_BYTES_MAX = 4 << 20
PEEK_BYTES = 1 << 20
"""How much of a zip entry is unpacked to look at it."""
OPCODES_MAX = 100_000
"""Data that still reads as pickle after so many opcodes is one."""

_ZIP_TAIL_BYTES = 22 + 65_535 + 20
"""End record, the longest comment it may have, and the 64-bit locator before it."""
_NAMES = (".pkl", ".pickle", ".pt", ".pth", ".pt2", ".joblib", ".ckpt", ".dill")
_PACKED = {
    b"\x1f\x8b\x08": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard", b"7z\xbc\xaf\x27\x1c": "7z",
}  # fmt: skip
_RUNS_CODE = {
    "GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX",
    "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID",
}  # fmt: skip
_WAY_OUT = (
    "loading it can run code; convert weights to safetensors, arrays to plain npz"
)


def check_inert(path: str, stream: BinaryIO) -> None:
    """Refuse a member that could run code when loaded.

    ``stream`` is read and sought in; where it stands afterwards is not defined.

    Raises:
        BundleError: the member is, or holds, a pickle, or hides its content.
    """
    found = _name_says(path) or _content_says(stream) or _zip_says(stream)
    if found:
        raise BundleError(f"member {path!r} {found}; {_WAY_OUT}")


def _name_says(path: str) -> str:
    if path.lower().endswith(_NAMES):
        return f"has a name of pickled files ({', '.join(_NAMES)})"
    return ""


def _content_says(stream: BinaryIO) -> str:
    stream.seek(0)
    head = stream.read(512)
    for magic, name in _PACKED.items():
        if head.startswith(magic):
            return f"is {name}-compressed and hides its content"
    if head[257:262] == b"ustar":
        return "is a tar archive and hides its content"
    stream.seek(0)
    if head.startswith(np.lib.format.MAGIC_PREFIX):
        return _npy_says(stream)
    return "is a pickle" if _is_pickle(stream) else ""


def _npy_says(stream: BinaryIO) -> str:
    try:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        dtype = read(stream)[2]
    except (
        ValueError, EOFError, SyntaxError, MemoryError, RecursionError,
        tokenize.TokenError,
    ) as error:  # fmt: skip
        return f"has a damaged .npy header ({error})"
    return "holds a pickled object array" if dtype.hasobject else ""


def _zip_says(stream: BinaryIO) -> str:
    if not zipfile.is_zipfile(stream):
        stream.seek(0)
        return "is a damaged zip archive" if stream.read(4) == b"PK\x03\x04" else ""
    if _directory_is_huge(stream):
        return f"is a zip archive with over {ZIP_DIRECTORY_BYTES_MAX} bytes of listing"
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
            if len(entries) > ZIP_ENTRIES_MAX:
                return f"has {len(entries)} zip entries; at most {ZIP_ENTRIES_MAX}"
            for entry in entries:
                found = _entry_says(archive, entry)
                if found:
                    return f"holds {entry.filename!r}, which {found}"
    except (
        zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError,
        ValueError, zlib.error,
    ) as error:  # fmt: skip
        return f"is a zip archive that cannot be looked into ({error})"
    return ""


def _directory_is_huge(stream: BinaryIO) -> bool:
    """Whether only listing the archive would take much memory.

    The 64-bit form is for archives beyond 4 GiB or 65,535 entries: huge by itself.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(size - _ZIP_TAIL_BYTES, 0))
    tail = stream.read(_ZIP_TAIL_BYTES)
    end = tail.rfind(b"PK\x05\x06")
    listing = int.from_bytes(tail[end + 12 : end + 16], "little")
    return listing > ZIP_DIRECTORY_BYTES_MAX or b"PK\x06\x07" in tail[:end][-20:]


def _entry_says(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> str:
    with archive.open(entry) as packed:
        peek = io.BytesIO(packed.read(PEEK_BYTES))
    if peek.getvalue()[:4] == b"PK\x03\x04":
        return "is a zip archive within a zip archive"
    return _name_says(entry.filename) or _content_says(peek)


class _Skipped(bytes):
    """Stands for ``size`` bytes that were passed over."""

    size = 0

    def __len__(self) -> int:
        return self.size


class _Skim:
    """A stream whose long stretches are passed over: opcodes matter, data does not.

    The length of an argument is what the file claims; believing it takes all memory.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        here = stream.tell()
        self._end = stream.seek(0, io.SEEK_END)
        stream.seek(here)

    def read(self, size: int) -> bytes:
        left = max(self._end - self._stream.tell(), 0)
        if size <= PEEK_BYTES or size > left:
            return self._stream.read(min(size, left, PEEK_BYTES))
        self._stream.seek(size, io.SEEK_CUR)
        skipped = _Skipped()
        skipped.size = size
        return skipped

    def readline(self) -> bytes:
        line = part = self._stream.readline(PEEK_BYTES)
        while part and not part.endswith(b"\n"):
            part = self._stream.readline(PEEK_BYTES)
        return line if line.endswith(b"\n") else line + part[-1:]


def _is_pickle(stream: BinaryIO) -> bool:
    """Whether the stream starts with opcodes up to STOP.

    Binary protocols announce themselves, so what follows STOP does not matter. Text
    protocols look like any text: they must name something that runs code, and end at
    the end of the data.
    """
    binary = stream.read(2)[:1] == b"\x80"
    stream.seek(0)
    runs_code = False
    try:
        skimmed: Any = _Skim(stream)
        for count, (opcode, _, _) in enumerate(pickletools.genops(skimmed)):
            runs_code |= opcode.name in _RUNS_CODE
            if count > OPCODES_MAX:
                return True
    except (ValueError, UnicodeDecodeError, IndexError, OverflowError):
        return False
    return binary or (runs_code and not stream.read(64).strip())
