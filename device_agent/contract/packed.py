"""Batches of records as they travel: JSON, compressed as the content type says.

The rules it keeps:

1. A reader takes every content type of :data:`CONTENT_TYPES`; a writer uses the best
   that it has. zlib is everywhere, zstd needs a package before Python 3.14.
2. What comes out of a decompressor is bounded while it comes out, not afterwards.
"""

import importlib
import zlib
from types import ModuleType
from typing import Final

from .errors import MessageError
from .messages import MESSAGE_BYTES_MAX, Batch, read, write

PLAIN: Final = "application/json"
ZLIB: Final = "application/json+zlib"
ZSTD: Final = "application/json+zstd"
CONTENT_TYPES: Final = (ZSTD, ZLIB, PLAIN)
WORTH_BYTES: Final = 256
"""Below it nothing is compressed: it would hardly be smaller."""
_LEVEL: Final = 3
_WINDOW_LOG_MAX: Final = 18
"""No frame of :data:`MESSAGE_BYTES_MAX` needs more to be unpacked."""


def pack(batch: Batch, content_type: str | None = None) -> tuple[str, bytes]:
    """The batch in bytes, and their content type.

    Args:
        batch: what to send.
        content_type: how; None: whatever is smallest here.

    Raises:
        ValueError: a content type that is not known, or not available, here.
    """
    raw = write(batch)
    if content_type is None:
        if len(raw) < WORTH_BYTES:
            return PLAIN, raw
        content_type = ZLIB if _zstd() is None else ZSTD
    if content_type == PLAIN:
        return PLAIN, raw
    if content_type == ZLIB:
        return ZLIB, zlib.compress(raw, 6)
    zstd = _zstd()
    if content_type != ZSTD or zstd is None:
        raise ValueError(f"cannot write {content_type!r} here")
    packed: bytes = zstd.compress(raw, _LEVEL)
    return ZSTD, packed


def unpack(content_type: str, data: bytes, bytes_max: int = MESSAGE_BYTES_MAX) -> Batch:
    """A batch that nobody vouches for yet.

    Raises:
        MessageError: too large, of an unknown content type, or not a batch.
    """
    if len(data) > bytes_max:
        raise MessageError(f"batch has {len(data)} bytes; at most {bytes_max}")
    if content_type == ZLIB:
        data = _inflated(data, bytes_max)
    elif content_type == ZSTD:
        data = _decompressed(data, bytes_max)
    elif content_type != PLAIN:
        known = ", ".join(CONTENT_TYPES)
        raise MessageError(f"content type {content_type!r:.80}; expected {known}")
    return read(data, Batch, bytes_max)


def _inflated(data: bytes, bytes_max: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(data, bytes_max + 1)
    except zlib.error as cause:
        raise MessageError(f"batch is not {ZLIB}: {cause}") from cause
    return _whole(found, bytes_max, stream.eof and not stream.unused_data, ZLIB)


def _decompressed(data: bytes, bytes_max: int) -> bytes:
    zstd = _zstd()
    if zstd is None:
        raise MessageError(f"cannot read {ZSTD} here: install backports.zstd")
    parameter = zstd.DecompressionParameter.window_log_max
    stream = zstd.ZstdDecompressor(options={parameter: _WINDOW_LOG_MAX})
    try:
        found = stream.decompress(data, bytes_max + 1)
    except zstd.ZstdError as cause:
        raise MessageError(f"batch is not {ZSTD}: {cause}") from cause
    return _whole(found, bytes_max, stream.eof and not stream.unused_data, ZSTD)


def _whole(found: bytes, bytes_max: int, ended: bool, what: str) -> bytes:
    if len(found) > bytes_max:
        raise MessageError(f"batch has more than {bytes_max} bytes unpacked")
    if not ended:
        raise MessageError(f"batch is not {what}: it is cut off, or more follows it")
    return found


def _zstd() -> ModuleType | None:
    """The module of Python 3.14, or the same as a package."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None
