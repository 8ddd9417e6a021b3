"""The one tar layout a bundle may have.

The rules it keeps:

1. A header is a function of path and size alone: POSIX ustar, mode 0644, mtime 0,
   uid and gid 0, empty owner names, regular file. So one content has one encoding.
2. ``parse`` accepts a header only when ``header`` would have written the same 512
   bytes: links, devices, sparse members, pax and GNU long names cannot pass.
3. Two zero blocks end the archive; nothing follows.
"""

import re

from .errors import BundleError

BLOCK_BYTES = 512
END = bytes(2 * BLOCK_BYTES)
PATH_CHARS_MAX = 200
MEMBER_BYTES_MAX = 8**11 - 1
"""What eleven octal digits can say: 8 GiB less one byte."""

_NAME_BYTES, _PREFIX_BYTES = 100, 155
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@-]*")
_KINDS = {
    b"1": "hard link", b"2": "symbolic link", b"3": "character device",
    b"4": "block device", b"5": "folder", b"6": "pipe", b"7": "contiguous file",
    b"x": "pax header", b"g": "global pax header", b"L": "GNU long name",
    b"K": "GNU long link", b"S": "sparse file",
}  # fmt: skip


def check_path(path: str) -> None:
    """Refuse a member path that could land anywhere but below the bundle's folder.

    Raises:
        BundleError: absolute, ``..``, backslash, empty part, too long, or characters
            outside ``A-Z a-z 0-9 _ . + @ -``.
    """
    parts = path.split("/")
    if path.startswith("/"):
        why = "is absolute"
    elif ".." in parts:
        why = "climbs out with '..'"
    elif "\\" in path:
        why = "holds a backslash"
    elif len(path) > PATH_CHARS_MAX:
        why = f"has {len(path)} characters; at most {PATH_CHARS_MAX} allowed"
    elif not all(_SEGMENT.fullmatch(part) for part in parts):
        why = "may hold only letters, digits and _ . + @ - in each part"
    else:
        return
    raise BundleError(f"member {path[:250]!r}: the path {why}")


def padding(size: int) -> bytes:
    """The zero bytes between a member's data and the next block."""
    return bytes(-size % BLOCK_BYTES)


def header(path: str, size: int) -> bytes:
    """The only header that a member of this path and size may have.

    Raises:
        BundleError: the path is not allowed, or cannot be split for ustar, or the
            size does not fit eleven octal digits.
    """
    check_path(path)
    if size > MEMBER_BYTES_MAX:
        raise BundleError(
            f"member {path!r} has {size} bytes; at most {MEMBER_BYTES_MAX} fit a bundle"
        )
    prefix, name = _split(path)
    fields = (
        name.encode().ljust(_NAME_BYTES, b"\0")
        + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"00000000000\0"
        + b" " * 8 + b"0" + bytes(100)
        + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2
        + prefix.encode().ljust(_PREFIX_BYTES, b"\0") + bytes(12)
    )  # fmt: skip
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


def parse(block: bytes) -> tuple[str, int]:
    """Path and size of the member that ``block`` announces.

    Raises:
        BundleError: anything but a header that :func:`header` writes.
    """
    if block[257:262] != b"ustar":
        raise BundleError(
            "no member begins where one should: the file is damaged, or no bundle"
        )
    path = _text(block[345:500]) + ("/" if block[345] else "") + _text(block[:100])
    kind = block[156:157]
    if kind != b"0":
        found = _KINDS.get(kind, f"type {kind!r}")
        raise BundleError(f"member {path!r} is a {found}; only regular files allowed")
    try:
        size = int(block[124:135], 8)
    except ValueError:
        raise BundleError(
            f"member {path!r}: size field {block[124:136]!r} is not octal"
        ) from None
    if size < 0 or block != header(path, size):
        raise BundleError(
            f"member {path!r}: its tar header is not the one bundles use (ustar, mode "
            "0644, mtime 0, no owner); pack it with edgeml"
        )
    return path, size


def _split(path: str) -> tuple[str, str]:
    if len(path) <= _NAME_BYTES:
        return "", path
    cut = path.find("/", len(path) - _NAME_BYTES - 1)
    if cut < 1 or cut > _PREFIX_BYTES:
        raise BundleError(
            f"member {path!r}: a part of the path is longer than {_NAME_BYTES} "
            "characters; shorten the file name"
        )
    return path[:cut], path[cut + 1 :]


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("ascii", "backslashreplace")
