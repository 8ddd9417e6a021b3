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
from typing import BinaryIO

import numpy as np

from .errors import BundleError

ZIP_ENTRIES_MAX = 10_000
PEEK_BYTES = 1 << 20
"""How much of a zip entry is unpacked to look at it."""
OPCODES_MAX = 100_000
"""Data that still reads as pickle after so many opcodes is one."""

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


def _entry_says(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> str:
    with archive.open(entry) as packed:
        peek = io.BytesIO(packed.read(PEEK_BYTES))
    if peek.getvalue()[:4] == b"PK\x03\x04":
        return "is a zip archive within a zip archive"
    return _name_says(entry.filename) or _content_says(peek)


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
        for count, (opcode, _, _) in enumerate(pickletools.genops(stream)):
            runs_code |= opcode.name in _RUNS_CODE
            if count > OPCODES_MAX:
                return True
    except (ValueError, UnicodeDecodeError, IndexError, OverflowError):
        return False
    return binary or (runs_code and not stream.read(64).strip())
