"""The hot path: health and inference as plain ASGI.

The raw body is read in the route, whatever its Content-Type (tritonclient sends none);
nothing is validated twice; answers are two messages. What this costs beside the bare
session is measured by ``scripts/bench serve``.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ..errors import AgentError, RequestError
from ..serving.repository import Repository
from . import codec
from .body import Budget, Receive, check_length, compress, decompress, read_body
from .tensors import build, parse

Send = Callable[[Any], Awaitable[None]]
Scope = Mapping[str, Any]

_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")
_COMPRESS_BYTES_MIN = 4096
"""Smaller answers are sent as they are: compressing costs more than sending."""

_COPIES = 4
"""What an answer takes, in sizes of its outputs: they, their JSON, and its growth."""


class Infer:
    """Answers infer requests."""

    def __init__(self, repository: Repository, budget: Budget, body_bytes: int) -> None:
        self._repository = repository
        self._budget = budget
        self._body_bytes = body_bytes

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, name: str, version: str | None
    ) -> None:
        """Answer one request; an :class:`AgentError` leaves for the caller to write."""
        header_bytes: int | None = None
        encoding = accepted = b""
        length = b""
        for key, value in scope["headers"]:
            if key == b"content-length":
                length = value
            elif key == b"inference-header-content-length":
                header_bytes = _header_bytes(value)
            elif key == b"content-encoding":
                encoding = value
            elif key == b"accept-encoding":
                accepted = value
        asked = self._repository.find(name, version)
        limit = asked.signature.body_bytes(self._body_bytes)
        check_length(length, limit)
        body = await read_body(receive, limit, self._budget)
        held_bytes = len(body)
        try:
            if encoding:
                body = decompress(body, encoding, limit)
            served = self._repository.route(name, version)
            if served.waiting:  # refuse before the work of parsing
                served.admit()
            signature = served.signature
            request = parse(body, header_bytes, signature)
            held_bytes += self._budget.take_answer(
                signature.answer_bytes * request.rows * _COPIES, held_bytes
            )
            outputs = await served.infer(request.feeds, request.rows, request.timeout_s)
            payload, head = build(request, outputs, served.name, served.version)
            await respond(send, 200, payload, head, accepted)
        finally:
            self._budget.release(held_bytes)


async def respond(
    send: Send, status: int, payload: bytes, json_bytes: int | None = None,
    accepted: bytes = b"", extra: tuple[tuple[bytes, bytes], ...] = (),
) -> None:  # fmt: skip
    """Send an answer; ``json_bytes`` is the length of its JSON before binary data."""
    headers = [_JSON if json_bytes is None else _BINARY, *extra]
    if json_bytes is not None:
        headers.append((b"inference-header-content-length", b"%d" % json_bytes))
    if accepted and len(payload) >= _COMPRESS_BYTES_MIN:
        payload, word = compress(payload, accepted)
        if word:
            headers += [(b"content-encoding", word), (b"vary", b"accept-encoding")]
    headers.append((b"content-length", b"%d" % len(payload)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": payload})


async def respond_error(send: Send, error: AgentError) -> None:
    """Send what every error looks like: ``{"error": text}``."""
    extra: tuple[tuple[bytes, bytes], ...] = ()
    if error.retry_after_s is not None:
        extra = ((b"retry-after", b"%d" % error.retry_after_s),)
    payload = codec.dumps({"error": str(error)})
    await respond(send, error.status, payload, extra=extra)


def _header_bytes(value: bytes) -> int:
    if not value.isdigit() or len(value) > 18:
        raise RequestError(
            "Inference-Header-Content-Length: expected a number of bytes, "
            f"found {value[:40]!r}"
        )
    return int(value)
