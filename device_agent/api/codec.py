"""JSON: orjson where its wheel exists, the standard library elsewhere.

Both take and give the same documents: no NaN or infinity in either direction, UTF-8
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


def loads(body: bytes) -> Any:
    """The JSON value in ``body``.

    Raises:
        RequestError: it is not JSON, or holds NaN or an infinity.
    """
    try:
        if orjson is not None:
            return orjson.loads(body)
        return json.loads(bytes(body).decode(), parse_constant=_no_constant)
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


def _reason(body: bytes, error: Exception) -> str:
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
