"""Request bodies for FastAPI's routes: within the limits, and as checked documents."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from ..errors import RequestError
from .body import Budget, check_length, decompress, read_body

CONTROL_BYTES_MAX = 64 << 10
"""Bytes of a request that controls the repository."""

D = TypeVar("D", bound=BaseModel)


class Bodies:
    """Reads bodies within this device's limits."""

    def __init__(self, limit_bytes: int, budget: Budget) -> None:
        self._limit_bytes = limit_bytes
        self._budget = budget

    @asynccontextmanager
    async def read(
        self, request: Request, limit_bytes: int | None = None
    ) -> AsyncIterator[bytes]:
        """The body; it counts as held until the end of the block.

        Raises:
            TooLargeError: it has more bytes than allowed.
            OverloadError: all callers together hold too many.
            RequestError: its Content-Encoding is unknown or damaged.
        """
        limit = limit_bytes or self._limit_bytes
        check_length(request.headers.get("content-length", "").encode(), limit)
        body = await read_body(request.receive, limit, self._budget)
        held_bytes = len(body)
        try:
            encoding = request.headers.get("content-encoding", "").encode("latin-1")
            body = decompress(body, encoding, limit)
            body = bytes(body)
            yield body
        finally:
            self._budget.release(held_bytes)

    async def document(self, request: Request, kind: type[D]) -> D:
        """A small JSON body; an empty one is an empty object.

        Raises:
            RequestError: it is not such a document; and as :meth:`read`.
        """
        async with self.read(request, CONTROL_BYTES_MAX) as raw:
            try:
                return kind.model_validate_json(raw or b"{}")
            except ValidationError as error:
                raise RequestError(reasons(error.errors())) from error


def reasons(found: Any) -> str:
    """Pydantic's complaints as one line."""
    return "; ".join(
        ": ".join(filter(None, (".".join(map(str, one["loc"])), one["msg"])))
        for one in found[:5]
    )
