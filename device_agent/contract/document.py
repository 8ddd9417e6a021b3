"""Reads a JSON document that nobody vouches for yet, the same way for every kind.

In this order: its size, whether it is JSON and an object, its version, its fields.
"""

import json
from typing import TypeVar

from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound=BaseModel)

WRONG_FIELDS_MAX = 5
"""How many wrong fields an error names."""


def read_document(
    raw: bytes,
    kind: type[M],
    *,
    what: str,
    version: tuple[str, int],
    bytes_max: int,
    error: type[Exception],
) -> M:
    """The document as ``kind``.

    Args:
        raw: The bytes.
        kind: What the fields must be.
        what: What to call it in an error.
        version: The field that says its version, and the version that is read.
        bytes_max: The most bytes it may have.
        error: What to raise.

    Raises:
        Exception: of type ``error``: too large, not JSON, no object, another version,
            or wrong fields; the text names the first of them.
    """
    if len(raw) > bytes_max:
        raise error(f"{what} has {len(raw)} bytes; at most {bytes_max} allowed")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as cause:
        raise error(f"{what} is not JSON: {cause}") from cause
    if not isinstance(value, dict):
        raise error(f"{what} is not a JSON object")
    field, known = version
    if value.get(field) != known:
        raise error(
            f"{what}: {field} {value.get(field)!r} is unknown; "
            f"this program reads {field} {known}"
        )
    try:
        return kind.model_validate(value)
    except ValidationError as cause:
        wrong = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}"
            for item in cause.errors()[:WRONG_FIELDS_MAX]
        )
        raise error(f"{what}: {wrong}") from cause
