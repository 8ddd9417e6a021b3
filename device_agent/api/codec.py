"""JSON: orjson and msgspec where their wheels exist, the standard library elsewhere.

orjson is the fastest with small documents. For large ones it asks for twelve times
their size at once, which the system has to clear each time; msgspec does not.

All take and give the same documents: no NaN or infinity in either direction, UTF-8
only, arrays written as flat lists.
"""

import json
from typing import Any, NoReturn

import numpy as np

from ..errors import RequestError, UnwritableError

orjson: Any
try:
    import orjson
except ImportError:  # armv7 and new Pythons have no wheel
    orjson = None
msgspec: Any
try:
    import msgspec
except ImportError:
    msgspec = None

SMALL_BYTES = 64 << 10
"""What orjson reads where both are there."""


def loads(body: bytes | bytearray) -> Any:
    """The JSON value in ``body``.

    Raises:
        RequestError: it is not JSON, or holds NaN or an infinity.
    """
    try:
        if msgspec is not None and len(body) > SMALL_BYTES:
            return msgspec.json.decode(body)
        if orjson is not None:
            return orjson.loads(body)
        return json.loads(body.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {_reason(body, error)}") from error


def dumps(value: Any) -> bytes:
    """``value`` as JSON; C-contiguous numeric arrays are written as nested lists.

    Raises:
        UnwritableError: it holds NaN or an infinity, which JSON cannot carry.
    """
    if orjson is None:
        try:
            return json.dumps(
                value, default=_plain, allow_nan=False, separators=(",", ":")
            ).encode()
        except ValueError as error:
            raise UnwritableError(_NOT_FINITE) from error
    written: bytes = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    # orjson writes null for what is not finite; a null elsewhere costs one look more
    if b"null" in written and not _finite(value):
        raise UnwritableError(_NOT_FINITE)
    return written


_NOT_FINITE = (
    "an output holds NaN or an infinity, which JSON cannot carry; "
    "ask for it as binary data (parameters: binary_data = true)"
)


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON; send such values as binary data")


def _reason(body: bytes | bytearray, error: Exception) -> str:
    if not body:
        return "it is empty"
    for word in (b"NaN", b"Infinity"):
        if word in body:
            return f"{word.decode()} has no place in JSON; send it as binary data"
    return str(error)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_finite, value))
    if isinstance(value, np.ndarray):
        return value.dtype.kind != "f" or bool(np.isfinite(value).all())
    return not isinstance(value, float) or bool(np.isfinite(value))
